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


def test_the_probe_is_the_ridge_regression_of_the_classes() -> None:
    features_ND, labels_N = draw(0)
    probe = fit_probe(moments_of(features_ND, labels_N, C, WORLD))
    centred_ND = features_ND.double() - features_ND.double().mean(dim=0)
    targets_NC = functional.one_hot(labels_N, C).double()
    ridge = bank_figures.RIDGE * centred_ND.var(dim=0, correction=0).mean() * N
    wide = torch.cat([centred_ND, ridge.sqrt() * torch.eye(D)])
    right = torch.cat([targets_NC - targets_NC.mean(dim=0), torch.zeros(D, C)])
    torch.testing.assert_close(probe.weights_DC, torch.linalg.lstsq(wide, right).solution)
    shares_C = features_ND.double().mean(dim=0) @ probe.weights_DC + probe.bias_C
    torch.testing.assert_close(shares_C, targets_NC.mean(dim=0))


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
