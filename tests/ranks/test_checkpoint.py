"""Checkpoints: any world size reads what any other wrote, and only whole ones are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from and_dist.bank import BankShard, shard_range
from and_dist.checkpoint import as_sharded, load_tensors, prune, read_latest, save_checkpoint
from and_dist.world import World
from tests.ranks.pool import SIZES, RankPool
from tests.ranks.scenes import shard_of

BANK_ND = torch.arange(41 * 3, dtype=torch.float32).view(41, 3)


def save_here(world: World, folder: Path, name: str, bank_ND: Tensor) -> None:
    bank = shard_of(bank_ND, world)
    tensors = {
        "bank": as_sharded(bank, world),
        "weight": torch.full((2, 2), 7.0),
        "counter": torch.tensor(3),
        "nothing": torch.empty(0, dtype=torch.int64),
    }
    save_checkpoint(folder, name, tensors, {"epoch": 1}, world)


def load_here(world: World, checkpoint: Path, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    start, stop = shard_range(num_rows, world.rank, world.size)
    bank = BankShard(torch.zeros(stop - start, 3), start, num_rows, 0.5)
    tensors = {
        "bank": as_sharded(bank, world),
        "weight": torch.zeros(2, 2),
        "counter": torch.tensor(0),
        "nothing": torch.empty(0, dtype=torch.int64),
    }
    load_tensors(checkpoint, tensors, world)
    return bank.features_SD, tensors["weight"], tensors["counter"]


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("num_rows", [41, 5])
def test_a_bank_saved_on_some_ranks_loads_on_others(
    ranks: RankPool, tmp_path: Path, before: int, num_rows: int
) -> None:
    ranks.run(before, save_here, tmp_path, "one", BANK_ND[:num_rows])
    checkpoint, state = read_latest(tmp_path) or pytest.fail("nothing was saved")
    assert (checkpoint, state["epoch"]) == (tmp_path / "one", 1)
    for after in SIZES:
        results = ranks.run(after, load_here, checkpoint, num_rows)
        assert torch.equal(torch.cat([bank for bank, _, _ in results]), BANK_ND[:num_rows])
        assert all(weight.eq(7).all() for _, weight, _ in results)
        assert all(counter == 3 for _, _, counter in results)


def test_no_file_of_a_checkpoint_is_a_pickle(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, save_here, tmp_path, "one", BANK_ND)
    suffixes = {file.suffix for file in (tmp_path / "one").iterdir()}
    assert suffixes == {".safetensors", ".json"}


def prune_here(world: World, folder: Path, keep: int, always: set[str]) -> None:
    prune(folder, keep, always, world)


def test_pruning_keeps_the_newest_and_the_named(ranks: RankPool, tmp_path: Path) -> None:
    for name in ("r00-e0001", "r00-e0002", "r00-e0003", "r01-e0001", "r01-e0002"):
        ranks.run(1, save_here, tmp_path, name, BANK_ND)
    ranks.run(2, prune_here, tmp_path, 2, {"r00-e0003"})
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left == ["r00-e0003", "r01-e0001", "r01-e0002"]


def test_a_checkpoint_of_another_format_is_refused(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(1, save_here, tmp_path, "one", BANK_ND)
    state = tmp_path / "one" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 0}))
    with pytest.raises(ValueError, match="is of format 0, this program reads format 1"):
        read_latest(tmp_path)
    state.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        read_latest(tmp_path)


def test_an_unfinished_checkpoint_is_not_seen(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(1, save_here, tmp_path, "one", BANK_ND)
    (tmp_path / ".two.unfinished").mkdir()
    checkpoint, _ = read_latest(tmp_path) or pytest.fail("nothing was saved")
    assert checkpoint.name == "one"
