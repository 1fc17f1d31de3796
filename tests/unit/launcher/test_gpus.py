"""How many GPUs a node gets where --gpus is missing. Those that a real SLURM has are in
tests/slurm, and a question on a terminal in tests/end_to_end."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.gpus import Place, choose_gpus, count_gpus
from launcher.jobs.cluster_profile import Profile
from launcher.slurm.client import count_gres


def choose(
    profile: Profile, place: Place = "nowhere", nodes: int = 1, workers: int | None = None
) -> tuple[int, list[str]]:
    """Return the choice, and what was said about it."""
    said: list[str] = []
    return choose_gpus(nodes, workers, profile, place, said.append), said


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A folder like /dev of a machine with four GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0", 1),
        ("1,2,3", 3),
        ("2,-1,3", 1),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,1", 2),
        ("0,1,2,3,4,5,6,7", 4),
    ],
)
def test_gpus_are_the_devices_that_cuda_would_show(
    visible: str | None, count: int, devices: Path
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_gpus(environ, devices) == count


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu", 1),
        ("gpu:8", 8),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:a100:4(S:0,2),gpu:v100:2(S:1)", 6),
        ("nvme:2,gpu:h100:4,mps:400", 4),
        ("gpu:1g.10gb:7(S:0)", 7),
        ("gpumem:80G", 0),
    ],
)
def test_gpus_are_counted_in_what_slurm_shows(gres: str, gpus: int) -> None:
    assert count_gres(gres) == gpus


@pytest.mark.parametrize(("workers", "gpus"), [(None, 8), (4, 4), (16, 8)])
def test_the_profile_decides_and_says_so(workers: int | None, gpus: int) -> None:
    chosen, said = choose(Profile(gpus_per_node=8), workers=workers)
    ranks = f" for --workers {workers}" if workers else ""
    why = "gpus_per_node of the cluster profile is 8; --gpus 0 trains on CPUs"
    assert (chosen, said) == (gpus, [f"--gpus {gpus}{ranks}: {why}"])


@pytest.mark.parametrize("profile", [Profile(gpus_per_node=0), Profile(sbatch={"gres": "gpu:4"})])
def test_a_profile_of_cpus_or_with_its_own_gres_says_nothing(profile: Profile) -> None:
    assert choose(profile) == (0, [])


def test_ranks_without_gpus_are_cpus_where_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert choose(Profile(), workers=2) == (0, [])


def test_where_nothing_is_known_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError) as refused:
        choose(Profile())
    assert "this job would use CPUs: give --gpus N, or --gpus 0 for CPUs" in str(refused.value)
    with pytest.raises(RuntimeError, match="sbatch is not on PATH"):
        choose(Profile(), "cluster")


@pytest.mark.parametrize(
    ("given", "nodes", "profile", "gpus", "why"),
    [
        ("0,1,2", 1, Profile(), 3, "3 GPU(s)"),
        ("0,1,2", 2, Profile(), 1, "3 GPU(s), 1 for each of 2 nodes"),
        ("0,1,2", 1, Profile(gpus_per_node=2), 2, "3 GPU(s)"),
        ("0,1,2", 1, Profile(gpus_per_node=0), 0, ""),
        ("", 1, Profile(gpus_per_node=8), 0, ""),
        ("", 1, Profile(environment={"CUDA_VISIBLE_DEVICES": "0"}), 1, "1 GPU(s)"),
    ],
)
def test_a_job_here_takes_the_gpus_of_this_machine(
    given: str,
    nodes: int,
    profile: Profile,
    gpus: int,
    why: str,
    devices: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(count_gpus, "__defaults__", ({}, devices))
    chosen, said = choose(profile, "here", nodes)
    assert chosen == gpus
    assert said == (
        [f"--gpus {gpus}: this machine has {why}; --gpus 0 trains on CPUs"] if gpus else []
    )


def test_fewer_gpus_than_nodes_here_are_a_sentence(
    devices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(count_gpus, "__defaults__", ({}, devices))
    with pytest.raises(ValueError, match=r"has 1 GPU\(s\) for --nodes 2: give fewer nodes, or --g"):
        choose(Profile(), "here", nodes=2)
    assert choose(Profile(gpus_per_node=0), "here", nodes=2) == (0, [])
