"""How long a node's ranks may go on when others have ended."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from launcher.jobs.job_folder import NodeEnd, write_node_end
from launcher.node.placement import NodePlacement
from launcher.node.runner import GRACE_SECONDS, ORDERLY_SECONDS, Node


@pytest.mark.parametrize(
    ("codes", "launcher", "expected"),
    [
        ({0: 0}, 0, math.inf),
        ({0: 75, 1: 75}, 1, ORDERLY_SECONDS),
        ({0: 75, 1: 1}, 1, GRACE_SECONDS),
        ({0: -9}, 1, GRACE_SECONDS),
        ({}, None, GRACE_SECONDS),
    ],
)
def test_what_ended_in_order_gives_the_others_time(
    tmp_path: Path, codes: dict[int, int], launcher: int | None, expected: float
) -> None:
    place = NodePlacement("1", 0, 1, 2, "n2", "n1", "n1:1")
    node = Node(tmp_path, place, [], on_asked=lambda _: None)
    assert node._patience() == math.inf
    write_node_end(tmp_path, 0, 0, NodeEnd(node="n1", exit_codes=codes, launcher=launcher))
    assert node._patience() == expected
