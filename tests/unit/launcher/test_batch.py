"""The scripts handed to sbatch, compared with what they were. To record them anew after a change
that is meant: RECORD=1 pytest tests/unit/launcher/test_batch.py, and read the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.batch import script_of
from launcher.profile import Profile, load_profile
from launcher.request import Request

JOB = Path("/shared/runs/demo/jobs/001")
CPU = Profile(
    cpus_per_node=4,
    python="/opt/venv/bin/python",
    environment={"A": "it's b"},
    srun=("--mpi=none",),
)
EXAMPLE = load_profile(Path("slurm/example.yaml"))
PLAIN = Profile(python="/opt/venv/bin/python")


def request(profile: Profile, nodes: int, gpus: int) -> Request:
    return Request(
        run=str(JOB.parents[1]),
        command=("and_dist", "train", "--config", str(JOB / "config.yaml")),
        nodes=nodes,
        workers=max(gpus, 1),
        gpus=gpus,
        seconds=7200.0,
        python=str(profile.python),
        code=str(JOB / "code"),
        profile=profile,
    )


@pytest.mark.parametrize(
    ("name", "profile", "nodes", "gpus", "after"),
    [
        ("plain", PLAIN, 1, 0, None),
        ("cpu", CPU, 4, 0, "17"),
        ("gpu", EXAMPLE, 4, 8, None),
    ],
)
def test_the_script_is_as_recorded(
    name: str, profile: Profile, nodes: int, gpus: int, after: str | None, tmp_path: Path
) -> None:
    script = script_of(tmp_path, request(profile, nodes, gpus), "demo", after)
    script = script.replace(str(tmp_path), str(JOB))
    recorded = Path(__file__).parent / "scripts" / f"{name}.sh"
    if os.environ.get("RECORD"):
        recorded.write_text(script)
    assert script == recorded.read_text()


def test_no_site_is_in_a_script_that_names_none(tmp_path: Path) -> None:
    script = script_of(tmp_path, request(PLAIN, 1, 0), "demo")
    for option in ("partition", "account", "qos", "constraint", "mem", "exclusive", "gpus"):
        assert f"--{option}" not in script
