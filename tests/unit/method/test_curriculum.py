from __future__ import annotations

import pytest
import torch

from and_dist.config.load import load_config
from and_dist.method.curriculum import num_anchors, select_anchors
from and_dist.method.neighbour_table import check_neighbours


def test_anchors_of_imagenet() -> None:
    counts = [num_anchors(1_281_167, r, 4) for r in range(5)]
    assert counts == [0, 320291, 640583, 960875, 1281167]


def test_one_round_makes_every_row_an_anchor() -> None:
    assert [num_anchors(10, r, 1) for r in range(2)] == [0, 10]


@pytest.mark.parametrize(("round_index", "num_rounds"), [(1, 0), (0, 0), (5, 4), (-1, 4)])
def test_a_round_outside_the_curriculum_is_refused(round_index: int, num_rounds: int) -> None:
    with pytest.raises(ValueError, match="round"):
        num_anchors(10, round_index, num_rounds)


def test_a_share_of_the_rows_is_added_in_every_round() -> None:
    # The published code counts int(50000 * 0.25 * round).
    assert [num_anchors(50_000, r, 2, share=0.25) for r in range(3)] == [0, 12_500, 25_000]
    # 3 * 0.1 is 0.30000000000000004 in binary digits, and 0.29 * 100 is 28.999999999999996.
    assert num_anchors(10, 3, 3, share=0.1) == 3
    assert num_anchors(100, 1, 1, share=0.29) == 29
    with pytest.raises(ValueError, match=r"3 rounds of 0\.34 of the rows"):
        num_anchors(10, 1, 3, share=0.34)


def test_a_curriculum_may_stop_at_half_of_the_anchors() -> None:
    half = load_config([], ["curriculum.rounds=2", "curriculum.share=0.25"]).curriculum
    assert [round(r * half.added, 6) for r in range(3)] == [0, 0.25, 0.5]
    assert load_config([], ["curriculum.rounds=5", "curriculum.share=0.2"]).curriculum.share == 0.2
    with pytest.raises(ValueError, match=r"curriculum\.share = 0\.3 in each of curriculum\.rounds"):
        load_config([], ["curriculum.share=0.3"])
    with pytest.raises(ValueError, match=r"curriculum\.share"):
        load_config([], ["curriculum.share=0"])


def test_lowest_entropy_first_ties_to_the_lower_row() -> None:
    assert select_anchors(torch.tensor([2.0, 1, 3, 1, 0]), 3).tolist() == [4, 1, 3]


@pytest.mark.parametrize(
    ("neighbours", "sentence"),
    [
        ([[1, 9]], "1 anchors have a neighbour out of range, row 3 first"),
        ([[1, -1]], "out of range"),
        ([[1, 3]], "itself as a neighbour"),
        ([[2, 2]], "a neighbour twice"),
    ],
)
def test_a_wrong_table_is_named(neighbours: list[list[int]], sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        check_neighbours(torch.tensor(neighbours), torch.tensor([3]), 9)
