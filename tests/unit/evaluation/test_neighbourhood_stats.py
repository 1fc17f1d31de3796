"""Figures about neighbourhoods, on tables small enough to count by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from and_dist.evaluation.neighbourhood_stats import (
    consistency,
    count_consistent,
    describe_neighbourhoods,
    describe_round,
    in_one_line,
)
from and_dist.method.neighbour_table import Neighbourhoods, all_instances

NOBODY = torch.empty(0, dtype=torch.int64)
LABELS_N = torch.tensor([0, 1, 0, 1, 0, 1])


def six_rows() -> Neighbourhoods:
    """Anchors 3, 0 and 5 with two neighbours each; entropies in bins of a tenth."""
    neighbours_NK = torch.tensor([[2, 4], [-1, -1], [-1, -1], [4, 5], [-1, -1], [4, 0]])
    entropy_N = torch.tensor([1.05, 4.0, 2.05, 0.0, 3.95, 1.06], dtype=torch.float64)
    return Neighbourhoods(neighbours_NK, entropy_N, torch.tensor([3, 0, 5]), 0.75)


def describe(
    found: Neighbourhoods, previous_A: Tensor = NOBODY, labels_N: Tensor | None = LABELS_N
) -> dict[str, Any]:
    figures = describe_neighbourhoods(found, previous_A, labels_N)
    json.dumps(figures, allow_nan=False)
    return figures


def in_bins(**counts: int) -> list[int]:
    """in_bins(_10=2): 40 bins, two in the one from 1.0 to 1.1."""
    return [counts.get(f"_{place}", 0) for place in range(40)]


def test_every_figure_of_a_small_table() -> None:
    figures = describe(six_rows(), torch.tensor([3, 1, 5, 2]))
    assert figures.keys() == {
        "anchors",
        "consistent",
        "inconsistent",
        "consistency_by_entropy",
        "kept",
        "recall",
        "entropy",
        "in_degree",
    }
    assert figures["anchors"] == 3
    assert figures["consistent"] == 3  # 0: 2 and 4; 3: 5
    assert figures["inconsistent"] == 3
    assert figures["consistency_by_entropy"] == [0.5, 1.0, 0.0]  # of rows 3, 0 and 5
    assert figures["kept"] == 0.5
    assert figures["recall"] == 0.75


def test_entropies_are_counted_in_bins() -> None:
    assert describe(six_rows())["entropy"] == {
        "low": 0.0,
        "high": 4.0,
        "mean": pytest.approx(12.11 / 6),
        "mean_of_anchors": pytest.approx(2.11 / 3),
        "rows": in_bins(_0=1, _10=2, _20=1, _39=2),
        "anchors": in_bins(_0=1, _10=2),
    }


def test_rows_that_are_named_are_counted() -> None:
    in_degree = describe(six_rows())["in_degree"]
    assert in_degree["never_named"] == 2
    assert in_degree["hubs"][0] == (4, 3)
    assert sorted(in_degree["hubs"]) == [(0, 1), (2, 1), (4, 3), (5, 1)]
    assert in_degree["rows_by_times_named"] == [2, 3, 0, 1]
    assert in_degree.keys() == {"never_named", "hubs", "rows_by_times_named"}


def test_ten_hubs_are_named_and_ten_times_stands_for_more() -> None:
    """Row 0 is named by 14 rows, row 1 by 5, rows 2 to 12 by one each, 13 and 14 by none."""
    neighbours_NK = torch.tensor([[1, 2], *([0, row] for row in range(3, 13)), *[[0, 1]] * 4])
    found = Neighbourhoods(neighbours_NK, torch.linspace(0, 1, 15).double(), torch.arange(15))
    in_degree = describe(found, labels_N=None)["in_degree"]
    assert in_degree["hubs"][:2] == [(0, 14), (1, 5)]
    assert len(in_degree["hubs"]) == 10
    assert in_degree["never_named"] == 2
    assert in_degree["rows_by_times_named"] == [2, 11, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_a_row_that_nobody_names_is_no_hub() -> None:
    found = Neighbourhoods(
        torch.tensor([[1], [0], [0]]), torch.tensor([0.0, 1, 2]).double(), torch.tensor([1, 2])
    )
    assert describe(found, labels_N=None)["in_degree"]["hubs"] == [(0, 2)]


@pytest.mark.parametrize(
    ("previous", "kept"), [([], None), ([3], 1.0), ([1], 0.0), ([0, 3, 5, 4], 0.75)]
)
def test_kept_is_the_share_of_the_last_anchors(previous: list[int], kept: float | None) -> None:
    assert describe(six_rows(), torch.tensor(previous, dtype=torch.int64))["kept"] == kept


def test_without_labels_there_is_no_word_on_consistency() -> None:
    figures = describe(six_rows(), labels_N=None)
    assert figures["consistent"] is None
    assert figures["inconsistent"] is None
    assert figures["consistency_by_entropy"] is None
    assert figures["anchors"] == 3


def test_no_anchors_leave_empty_figures() -> None:
    found = Neighbourhoods(torch.full((6, 2), -1), six_rows().entropy_N, NOBODY, 1.0)
    figures = describe(found, torch.tensor([3, 1]))
    assert (figures["anchors"], figures["consistent"], figures["inconsistent"]) == (0, 0, 0)
    assert figures["kept"] == 0.0
    assert figures["entropy"]["mean_of_anchors"] is None
    assert figures["entropy"]["anchors"] == in_bins()
    assert figures["in_degree"] == {
        "never_named": 6,
        "hubs": [],
        "rows_by_times_named": [6],
    }


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-7, 3.0])
def test_no_row_falls_out_of_the_bins(spread: float) -> None:
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        entropy_N = 5 + spread * torch.rand(50, generator=random, dtype=torch.float64)
        table_NK = (torch.arange(50)[:, None] + 1) % 50
        figures = describe(Neighbourhoods(table_NK, entropy_N, torch.arange(20)), labels_N=None)
        assert sum(figures["entropy"]["rows"]) == 50
        assert sum(figures["entropy"]["anchors"]) == 20


@pytest.mark.parametrize(
    ("neighbours", "anchors", "labels", "expected"),
    [
        ([[1], [0]], [0, 1], [0, 0], 1.0),
        ([[1], [0]], [1, 0], [0, 1], 0.0),
        ([[1], [2], [0]], [0, 1], [7, 7, 8], 0.5),
        ([[1], [-1], [0]], [2, 0], [7, 7, 8], 0.5),
        ([[1, 2], [-1, -1], [-1, -1]], [0], [4, 4, 5], 0.5),
        ([[1, 2], [0, 2], [0, 1]], [0, 1, 2], [4, 4, 5], 1 / 3),
    ],
)
def test_consistency_is_the_share_of_pairs_of_one_class(
    neighbours: list[list[int]], anchors: list[int], labels: list[int], expected: float
) -> None:
    table_NK, labels_N = torch.tensor(neighbours), torch.tensor(labels)
    entropy_N = torch.zeros(len(neighbours)).double()
    found = Neighbourhoods(table_NK, entropy_N, torch.tensor(anchors))
    assert consistency(found, labels_N) == pytest.approx(expected)
    assert count_consistent(found, labels_N) == round(expected * len(anchors) * table_NK.shape[1])


def test_instances_alone_are_not_consistent_or_otherwise() -> None:
    found = all_instances(6, 2, torch.device("cpu"))
    assert consistency(found, LABELS_N) is None
    assert count_consistent(found, LABELS_N) == 0


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "discovery of round 2: 1,500 anchors, 1,100 pairs consistent, 400 not, 1:05"),
        (
            {"kept": 0.5, "recall": 0.975},
            "discovery of round 2: 1,500 anchors, 1,100 pairs consistent, 400 not, "
            "50.0 % of the last anchors kept, recall 97.5 %, 1:05",
        ),
        (
            {"consistent": None, "inconsistent": None, "kept": 0.0},
            "discovery of round 2: 1,500 anchors, 0.0 % of the last anchors kept, 1:05",
        ),
    ],
)
def test_one_line_says_what_there_is_to_say(changed: dict[str, Any], line: str) -> None:
    figures = {"anchors": 1500, "consistent": 1100, "inconsistent": 400, "kept": None, "recall": 1}
    assert in_one_line(2, figures | changed, 65.2) == line


def test_a_round_is_described_by_labels_or_by_what_needs_none() -> None:
    signs = {"neighbour_entropy": 0.431, "spread": 0.25, "mean_norm": 0.1}
    round_ = {"round": 1, "anchors": 1500, "consistency": None, "knn": None, "seconds": 65, **signs}
    assert describe_round(round_, "K 50") == (
        "round 1 done: 1,500 anchors, neighbour entropy 0.43 of 1, spread 0.25 of 1, 1:05"
    )
    labelled = {"consistency": 0.521, "knn": 0.38, "knn_bank": 0.371, "probe_bank": 0.402}
    assert describe_round(round_ | labelled, "K 50, tau 0.1") == (
        "round 1 done: 1,500 anchors, consistency 52.1 %, "
        "kNN 38.0 % (bank 37.1 %, probe 40.2 %; K 50, tau 0.1), 1:05"
    )
