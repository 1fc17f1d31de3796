"""The scripts of tests/attack/access/test_scripts.py, given to a real sbatch, and run by it."""

from __future__ import annotations

import os
import subprocess
from itertools import product
from pathlib import Path

import pytest

from slurm.testcluster.cluster import output, wait_until
from tests.attack.access.test_scripts import HOSTILE, MARK, WAYS, script_with, write_stubs
from tests.slurm.jobs import SECONDS_TO_ASK

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]


def test_no_value_is_executed_by_slurm(home: Path) -> None:
    stubs = write_stubs(home)
    (stubs / "srun").unlink()  # the real one starts the tasks
    environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
    ids = list[str]()
    for way, value in product(WAYS, HOSTILE):
        try:
            profile, given = WAYS[way](value, home)
            run = given.get("run", home / "run")
            script = script_with(profile, run, given.get("after"))
        except ValueError:
            continue
        (run / "jobs" / "001").mkdir(parents=True, exist_ok=True)
        tried = subprocess.run(
            ["sbatch", "--parsable"], input=script, env=environment, capture_output=True, text=True
        )
        ids += [tried.stdout.strip()] if tried.returncode == 0 else []
    assert len(ids) > len(HOSTILE), "SLURM has to take many of the scripts"
    wait_until(lambda: not output("squeue", "-h", "-o", "%i"), "the jobs", poll=SECONDS_TO_ASK)
    ends = [output("scontrol", "show", "job", job_id) for job_id in ids]
    assert [end for end in ends if "JobState=COMPLETED" not in end] == []
    assert list(home.rglob(MARK)) == []
