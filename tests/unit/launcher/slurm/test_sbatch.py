"""The scripts handed to sbatch, compared with what they were. To record them anew after a change
that is meant: RECORD=1 pytest tests/unit/launcher/slurm/test_sbatch.py, and read the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile, load_profile
from launcher.jobs.request import Request
from launcher.slurm.sbatch import script_of

JOB = Path("/shared/runs/demo/jobs/001")
CPU = Profile(
    cpus_per_node=4,
    python="/opt/venv/bin/python",
    environment={"A": "it's b"},
    srun=("--mpi=none",),
)
EXAMPLE = load_profile(Path("slurm/example.yaml"))
PLAIN = Profile(python="/opt/venv/bin/python")
STUBBORN = Profile(
    python="apptainer exec a.sif python", requeues=False, sbatch={"exclusive": False, "nice": 1}
)
MEMBERS = [Path(f"/shared/runs/sweep/{name}/jobs/001") for name in ("a b", "c", "d")]


def request(profile: Profile, nodes: int, gpus: int) -> Request:
    return Request(
        run=str(JOB.parents[1]),
        command=("and_dist", "train", "--config", str(JOB / "config.yaml")),
        nodes=nodes,
        workers=max(gpus, 1),
        gpus=gpus,
        seconds=7200.0,
        python=str(profile.python),
        host_python="/opt/venv/bin/python",
        code=str(JOB / "code"),
        profile=profile,
    )


@pytest.mark.parametrize(
    ("name", "profile", "nodes", "gpus", "after", "jobs"),
    [
        ("plain", PLAIN, 1, 0, None, [JOB]),
        ("cpu", CPU, 4, 0, "17", [JOB]),
        ("gpu", EXAMPLE, 4, 8, None, [JOB]),
        ("array", STUBBORN, 1, 0, None, MEMBERS),
    ],
)
def test_the_script_is_as_recorded(
    name: str,
    profile: Profile,
    nodes: int,
    gpus: int,
    after: str | None,
    jobs: list[Path],
    tmp_path: Path,
) -> None:
    script = script_of(tmp_path, jobs, request(profile, nodes, gpus), "demo", after, 2)
    script = script.replace(str(tmp_path), str(JOB))
    recorded = Path(__file__).parent / "scripts" / f"{name}.sh"
    if os.environ.get("RECORD"):
        recorded.write_text(script)
    assert script == recorded.read_text()


def test_no_site_is_in_a_script_that_names_none(tmp_path: Path) -> None:
    script = script_of(tmp_path, [JOB], request(PLAIN, 1, 0), "demo")
    for option in ("partition", "account", "qos", "constraint", "mem", "exclusive", "gpus"):
        assert f"--{option}" not in script
