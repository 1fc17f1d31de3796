"""Places, accuracies and their intervals against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from and_dist.evaluation.accuracy import (
    UNREADABLE,
    interval_of,
    rank_of_true_class,
    score,
    top1_accuracy,
)
from tests.loading import world_of

NAMES = tuple("abcdefg")


def test_a_place_counts_the_classes_before_the_true_one() -> None:
    random = torch.Generator().manual_seed(0)
    scores_MC = torch.randint(0, 4, (200, 7), generator=random).float()  # with many ties
    labels_M = torch.randint(0, 7, (200,), generator=random)
    expected = []
    for scores_C, label in zip(scores_MC.tolist(), labels_M.tolist(), strict=True):
        order = sorted(range(7), key=lambda c: (-scores_C[c], c))
        expected.append(order.index(label))
    assert rank_of_true_class(scores_MC, labels_M).tolist() == expected
    first = rank_of_true_class(scores_MC, labels_M) == 0
    assert torch.equal(first, scores_MC.argmax(dim=1) == labels_M)


def test_what_is_no_number_is_never_right() -> None:
    scores_MC = torch.tensor([[torch.nan] * 7, [0.0, torch.nan, 2.0, 0, 0, 0, 0]])
    assert rank_of_true_class(scores_MC, torch.tensor([0, 2])).tolist() == [7, 1]


def test_figures_are_shares_of_what_could_be_read() -> None:
    places_M = torch.tensor([0, 0, 1, 5, UNREADABLE, 4])
    labels_M = torch.tensor([0, 1, 1, 1, 2, 2])
    figures = score(places_M, labels_M, NAMES, world_of())
    assert figures["top1"] == top1_accuracy(places_M, world_of()) == 2 / 5
    assert figures["top5"] == 4 / 5
    assert (figures["images"], figures["unreadable"]) == (5, 1)
    per_class = {"a": 1.0, "b": 1 / 3, "c": 0.0}
    assert figures["per_class"] == {name: per_class.get(name) for name in NAMES}


def test_top5_of_five_classes_says_nothing() -> None:
    figures = score(torch.tensor([0, 1]), torch.tensor([0, 1]), NAMES[:5], world_of())
    assert figures["top5"] is None


@pytest.mark.parametrize(("right", "images"), [(86, 100), (700, 1000), (3, 12), (80, 80), (0, 7)])
def test_the_interval_holds_the_shares_that_the_count_does_not_refute(
    right: int, images: int
) -> None:
    """Wilson's bounds are where the share lies 1.96 of its own standard errors from the count."""
    for share in interval_of(right, images):
        error = np.sqrt(share * (1 - share) / images)
        assert abs(share - right / images) == pytest.approx(1.959964 * error, rel=1e-5, abs=1e-9)


def test_all_right_leaves_a_doubt() -> None:
    low, high = interval_of(80, 80)
    assert (round(low, 3), high) == (0.954, 1.0)
