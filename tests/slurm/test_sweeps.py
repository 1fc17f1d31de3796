from __future__ import annotations

from pathlib import Path

import pytest

from launcher.jobs.job_folder import job_folders
from launcher.status import look_at
from slurm.testcluster.cluster import output
from tests.slurm.jobs import SHORT, launch, wait_for_end

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]


SWEEP = """
name: rates
config: [{config}]
overrides: [{overrides}]
runs: [{{optim.lr: 0.02}}, {{optim.lr: 0.04}}, {{data.train: images}}]
parallel: 2
"""


def test_a_sweep_is_one_array_and_fills_in_what_is_missing(home: Path) -> None:
    """The third run's images are not to be seen by the login node, and not there for the nodes."""
    _, config, *overrides = SHORT
    text = SWEEP.format(config=config, overrides=", ".join(f'"{o}"' for o in overrides))
    (home / "sweep.yaml").write_text(text)
    given = ("sweep", "sweep.yaml", "--cluster", "cluster.yaml", "--time", "5m")
    status, said = launch(*given)
    assert status == 0, said
    assert "3 runs, 3 to do, 2 at once" in said
    runs = [home / "runs" / "rates" / name for name in ("lr-0.02", "lr-0.04", "train-images")]
    ids = [str(look_at(run).job_id) for run in runs]
    assert len({job_id.split("_")[0] for job_id in ids}) == 1
    assert [job_id.split("_")[1] for job_id in ids] == ["0", "1", "2"]
    assert "ArrayTaskThrottle=2" in output("scontrol", "show", "job", ids[0])
    assert [wait_for_end(run).state for run in runs] == ["finished", "finished", "failed"]
    assert "data.train=images" in launch("logs", runs[2])[1]
    table = launch("status", home / "runs" / "rates")[1]
    assert table.count("finished") == 2
    assert "rank 0 refused its config or data" in table

    status, said = launch(*given, "--follow")
    assert status == 1
    assert "3 runs, 1 to do" in said
    assert table.splitlines()[0] in said
    assert [len(job_folders(run)) for run in runs] == [1, 1, 2]
