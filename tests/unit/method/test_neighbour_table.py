"""The table of round 0; the tests of curriculum and discovery hold the others."""

from __future__ import annotations

import torch

from and_dist.method.neighbour_table import all_instances


def test_an_instance_has_no_neighbours() -> None:
    table = all_instances(3, 2, torch.device("cpu"))
    assert table.neighbours_NK.tolist() == [[-1, -1]] * 3
    assert table.entropy_N.isnan().tolist() == [True] * 3
    assert table.entropy_N.dtype == torch.float64
    assert table.anchors_A.shape == (0,)
    assert table.anchors_A.dtype == torch.int64
    assert table.recall is None
