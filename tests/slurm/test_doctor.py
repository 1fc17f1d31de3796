from __future__ import annotations

from pathlib import Path

import pytest

from slurm.testcluster.cluster import Cluster, output
from tests.slurm.jobs import launch

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.whole_run]


def test_a_healthy_profile_is_called_so(home: Path) -> None:
    status, said = launch("doctor", "--cluster", "cluster.yaml", "--folder", "runs")
    assert status == 0, said
    for words in ("SLURM took the job", "the nodes write to", "are on n1, n2", "2 ranks on 2 node"):
        assert words in said
    assert "WRONG" not in said
    assert "this profile works" in said
    assert list((home / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("profile", "arguments", "sentence"),
    [
        ("partition: gpu", [], "there are low, main, paid, short"),
        ("partition: paid\naccount: nobody", [], "account=nobody"),
        ("", ["--gpus", 2, "--nodes", 1], "shows torch 0 GPU(s), 2 were asked for"),
        ("python: /opt/none/bin/python", [], "Python did not start on the nodes"),
        ("host_python: /opt/none/bin/python", ["--nodes", 1], "could not decide what comes next"),
        ("interface: ib7", ["--nodes", 1], "has no network interface ib7; it has eth0, lo"),
        ("sbatch: {begin: now+1hour}", ["--patience", 3], "did not start in 3 s"),
    ],
)
def test_a_sick_profile_gets_a_sentence(
    home: Path, profile: str, arguments: list[object], sentence: str
) -> None:
    (home / "sick.yaml").write_text(f"gpus_per_node: 0\n{profile}")
    status, said = launch("doctor", "--cluster", "sick.yaml", "--folder", "runs", *arguments)
    assert status == 1, said
    assert sentence in said
    assert "WRONG" in said
    assert "Traceback" not in said
    assert output("squeue", "-h", "-t", "PD,R", "-o", "%i") == ""


def test_a_folder_that_nodes_do_not_share_is_told(cluster: Cluster) -> None:
    status, said = launch("doctor", "--cluster", "cluster.yaml", "--folder", cluster.unshared)
    assert status == 1, said
    assert "choose a --folder that is shared" in said
