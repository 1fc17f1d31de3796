from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.request import Request
from launcher.local import gpus_of, torchrun_commands


def request(nodes: int, gpus: int, profile: Profile | None = None) -> Request:
    return Request(
        run="/runs/demo",
        command=("and_dist",),
        nodes=nodes,
        workers=2,
        gpus=gpus,
        seconds=60,
        python="python -X dev",
        host_python="python",
        code="code",
        profile=profile or Profile(),
    )


@pytest.mark.parametrize(
    ("nodes", "gpus", "given", "visible"),
    [
        (2, 2, {}, ["0,1", "2,3"]),
        (2, 2, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, ["4,5", "6,7"]),
        (1, 2, {"CUDA_VISIBLE_DEVICES": "4,5"}, [None]),
        (2, 0, {"CUDA_VISIBLE_DEVICES": "4,5"}, ["", ""]),
    ],
)
def test_nodes_here_have_gpus_of_their_own_of_those_that_were_given(
    nodes: int, gpus: int, given: dict[str, str], visible: list[str | None]
) -> None:
    wanted = request(nodes, gpus)
    taken = [gpus_of(node, wanted, given).get("CUDA_VISIBLE_DEVICES") for node in range(nodes)]
    assert taken == visible


def test_commands_without_the_launcher_have_its_variables_and_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = ("--config", "my configs/a.yaml", "optim.milestones=[2]")
    profile = Profile(interface="ib0", environment={"NOTE": "a b"})
    train = "-m and_dist train --config 'my configs/a.yaml' 'optim.milestones=[2]'"
    start = "python -X dev -m torch.distributed.run"
    assert torchrun_commands(request(1, 2), given) == [
        f"{start} --standalone --nproc-per-node=2 {train}"
    ]
    variables = "GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0 NOTE='a b' CUDA_VISIBLE_DEVICES="
    place = "--master-addr=127.0.0.1 --nproc-per-node=2"
    assert torchrun_commands(request(2, 2, profile), given) == [
        f"{variables}0,1 {start} --nnodes=2 --node-rank=0 {place} {train} &",
        f"{variables}2,3 {start} --nnodes=2 --node-rank=1 {place} {train}",
    ]


@pytest.mark.whole_run
def test_a_node_ends_with_its_launcher(tmp_path: Path) -> None:
    """A node that is told by the kernel, and one whose launcher had ended before it began."""
    node = tmp_path / "node.py"
    node.write_text(
        "import os, sys, time\n"
        "from launcher.node.runner import end_with, listen\n"
        "heard = listen()\n"
        "end_with(int(sys.argv[1]))\n"
        "print(os.getpid(), flush=True)\n"
        "while not heard: time.sleep(0.01)\n"
        "print(heard, flush=True)\n"
    )
    launcher = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {str(node)!r}, str(os.getpid())])\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    assert process.stdout.read() == "['SIGTERM']\n"
    process.stdout.close()
    process.wait()
    late = subprocess.run(
        [sys.executable, node, str(process.pid)], capture_output=True, text=True, check=True
    )
    assert late.stdout.endswith("['SIGTERM']\n")
