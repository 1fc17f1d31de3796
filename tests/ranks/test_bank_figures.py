"""Figures of the bank while training: equal at any world size, and nothing learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional

from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import top1_accuracy
from and_dist.evaluation.bank_figures import (
    fit_probe,
    moments_of,
    neighbour_entropy,
    signs_of_collapse,
)
from and_dist.method.memory_bank import MemoryBank, shard_range
from benchmarks.common.rank_pool import RankPool
from tests.ranks.runs import checkpoint_of, debug_config, metrics_of, train

N, D, C, M = 103, 8, 3, 41


class Found(NamedTuple):
    """What a rank has measured."""

    probe: float
    signs: dict[str, float]
    entropy: float


def measure(world: World, dtype: torch.dtype) -> Found:
    generator = torch.Generator().manual_seed(0)
    features_ND = functional.normalize(torch.randn(N, D, generator=generator) + 0.5, dim=1)
    labels_N = torch.randint(-1, C, (N,), generator=generator)
    start, stop = shard_range(N, world.rank, world.size)
    bank = MemoryBank(features_ND[start:stop].to(dtype), start, N, 0.5)
    moments = moments_of(bank.features_SD, labels_N[start:stop], C, world)
    test = slice(*shard_range(M, world.rank, world.size))
    queries_MD = functional.normalize(torch.randn(M, D, generator=generator), dim=1)[test]
    test_M = torch.randint(C, (M,), generator=generator)[test]
    probe = top1_accuracy(fit_probe(moments).places(queries_MD, test_M), world)
    return Found(probe, signs_of_collapse(moments), neighbour_entropy(bank, 0.1, world))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_figures_are_equal_at_any_world_size(
    ranks: RankPool, size: int, dtype: torch.dtype
) -> None:
    (alone,) = ranks.run(1, measure, dtype)
    bound = 1e-5 if dtype == torch.float32 else 1e-3
    for found in ranks.run(size, measure, dtype):
        assert found.probe == pytest.approx(alone.probe)
        assert found.signs == pytest.approx(alone.signs, rel=1e-9)
        assert found.entropy == pytest.approx(alone.entropy, rel=bound)


@pytest.mark.parametrize("size", [1, 2])
def test_no_weight_depends_on_what_is_measured(ranks: RankPool, tmp_path: Path, size: int) -> None:
    options = ("evaluation.baselines=false", "curriculum.rounds=1")
    measured = debug_config(tmp_path, "name=measured", "evaluation.every=1", *options)
    blind = debug_config(tmp_path, "name=blind", "evaluation.every=0", "data.test=null", *options)
    for config in (measured, blind):
        ranks.run(size, train, config)
    ours, theirs = checkpoint_of(measured.folder), checkpoint_of(blind.folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    epochs = [line for line in metrics_of(measured.folder) if line["event"] == "epoch"]
    assert all(0 <= line["probe_bank"] <= 1 for line in epochs)
    lines = metrics_of(blind.folder)
    assert all(line["probe_bank"] is None for line in lines if line["event"] == "epoch")
    last = lines[-1]
    assert (last["event"], last["probe_bank"], last["knn"]) == ("round", None, None)
    assert 0 < last["neighbour_entropy"] < 1
