from __future__ import annotations

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.request import Request
from launcher.local import gpus_of


@pytest.mark.parametrize(
    ("nodes", "given", "gpus"),
    [
        (2, {}, ["0,1", "2,3"]),
        (2, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, ["4,5", "6,7"]),
        (1, {"CUDA_VISIBLE_DEVICES": "4,5"}, [None]),
    ],
)
def test_nodes_here_have_gpus_of_their_own_of_those_that_were_given(
    nodes: int, given: dict[str, str], gpus: list[str | None]
) -> None:
    request = Request(
        run="/runs/demo",
        command=("and_dist",),
        nodes=nodes,
        workers=2,
        gpus=2,
        seconds=60,
        python="python",
        host_python="python",
        code="code",
        profile=Profile(),
    )
    taken = [gpus_of(node, request, given).get("CUDA_VISIBLE_DEVICES") for node in range(nodes)]
    assert taken == gpus
