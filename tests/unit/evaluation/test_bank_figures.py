"""The linear probe on the bank's rows, and early signs of collapse, from sums in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import lone_world
from and_dist.evaluation import bank_figures
from and_dist.evaluation.bank_figures import (
    describe_collapse,
    fit_probe,
    moments_of,
    neighbour_entropy,
    signs_of_collapse,
)
from and_dist.method.memory_bank import MemoryBank

WORLD = lone_world(torch.device("cpu"))
N, D, C = 300, 8, 3


def draw(seed: int, rows: int = N) -> tuple[Tensor, Tensor]:
    """Rows around one direction a class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(C, (rows,), generator=generator)
    noise_ND = torch.randn(rows, D, generator=generator)
    features_ND = functional.normalize(4 * torch.eye(C, D)[labels_N] + noise_ND, dim=1)
    return features_ND, labels_N


def no_labels(rows: int = N) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64)


def test_the_probe_is_linear_discriminant_analysis() -> None:
    features_ND, labels_N = draw(0)
    probe = fit_probe(moments_of(features_ND, labels_N, C, WORLD))
    rows_ND = features_ND.double()
    means_CD = torch.stack([rows_ND[labels_N == label].mean(dim=0) for label in range(C)])
    apart_ND = rows_ND - means_CD[labels_N]
    within_DD = apart_ND.T @ apart_ND / N
    within_DD += torch.eye(D) * (bank_figures.RIDGE * within_DD.trace() / D + 1e-9)
    test_MD = draw(1)[0].double()
    from_means_MCD = test_MD[:, None] - means_CD
    distances_MC = (from_means_MCD @ within_DD.inverse() * from_means_MCD).sum(dim=2)
    expected_MC = labels_N.bincount().div(N).log() - distances_MC / 2
    scores_MC = test_MD @ probe.weights_DC + probe.bias_C
    torch.testing.assert_close(scores_MC.log_softmax(dim=1), expected_MC.log_softmax(dim=1))


def test_nothing_is_taken_for_a_class_without_a_row() -> None:
    features_ND, labels_N = draw(0)
    probe = fit_probe(moments_of(features_ND, labels_N, C + 1, WORLD))
    test_MD, test_M = draw(1)
    assert (probe.places(test_MD, torch.full_like(test_M, C)) == C).all()
    fewer = fit_probe(moments_of(features_ND, labels_N, C, WORLD))
    assert torch.equal(probe.places(test_MD, test_M), fewer.places(test_MD, test_M))


def test_the_probe_tells_classes_apart_that_it_has_not_seen() -> None:
    features_ND, labels_N = draw(0)
    probe = fit_probe(moments_of(features_ND, labels_N, C, WORLD))
    test_MD, test_M = draw(1)
    assert (probe.places(test_MD, test_M) == 0).double().mean() > 0.9


def test_rows_of_no_class_and_rows_that_are_not_finite_weigh_nothing() -> None:
    features_ND, labels_N = draw(0)
    odd_ND = torch.cat([features_ND, -features_ND[:2], torch.full((1, D), math.nan)])
    odd_N = torch.cat([labels_N, torch.tensor([-1, -1, 0])])
    for ours, theirs in zip(
        moments_of(odd_ND, odd_N, C, WORLD),
        moments_of(features_ND, labels_N, C, WORLD),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_tiles_change_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, labels_N = draw(0)
    whole = moments_of(features_ND, labels_N, C, WORLD)
    monkeypatch.setattr(bank_figures, "VALUES_OF_A_TILE", 7 * (D + C))
    for ours, theirs in zip(moments_of(features_ND, labels_N, C, WORLD), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def signs(features_ND: Tensor) -> dict[str, float]:
    return signs_of_collapse(moments_of(features_ND, no_labels(len(features_ND)), 1, WORLD))


def test_features_in_all_directions_show_no_sign() -> None:
    rows_ND = torch.cat([torch.eye(D), -torch.eye(D)])
    assert signs(rows_ND) == {"mean_norm": pytest.approx(0, abs=1e-12), "spread": pytest.approx(1)}


def test_features_in_few_directions_have_little_spread() -> None:
    rows_ND = torch.cat([torch.eye(D)[:2], -torch.eye(D)[:2]])
    assert signs(rows_ND)["spread"] == pytest.approx(2 / D)


def test_equal_features_show_every_sign_and_a_warning_that_says_what_to_try() -> None:
    found = signs(torch.eye(D)[:1].expand(20, D))
    assert found["mean_norm"] == pytest.approx(1)
    assert found["spread"] <= 1 / D + 1e-9
    assert "try a lower optim.lr" in describe_collapse(found, D)
    assert describe_collapse(signs(draw(0)[0]), D) == ""
    assert describe_collapse({"knn_bank": None}, D) == ""
    probe = fit_probe(moments_of(torch.eye(D)[:1].expand(20, D), no_labels(20), 1, WORLD))
    assert probe.bias_C.isfinite().all()
    assert probe.weights_DC.isfinite().all()


def entropy_of(rows_ND: Tensor, temperature: float) -> float:
    return neighbour_entropy(MemoryBank(rows_ND, 0, len(rows_ND), 0.5), temperature, WORLD)


def test_neighbour_entropy_is_that_of_the_softmax_over_the_bank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows_ND = draw(0)[0].double()
    softmax_NN = (rows_ND @ rows_ND.T / 0.2).softmax(dim=1)
    expected = torch.special.entr(softmax_NN).sum(dim=1).mean() / math.log(N)
    monkeypatch.setattr(bank_figures, "MOST_LOOKED_AT", 10**6)
    assert entropy_of(rows_ND.float(), 0.2) == pytest.approx(float(expected), rel=1e-4)


def test_neighbour_entropy_lies_between_alone_and_like_all() -> None:
    assert entropy_of(torch.eye(D), 0.01) == pytest.approx(0, abs=1e-3)
    assert entropy_of(torch.eye(D)[:1].repeat(20, 1), 0.1) == pytest.approx(1)
    assert entropy_of(torch.eye(D)[:1], 0.1) == pytest.approx(0, abs=1e-6)
