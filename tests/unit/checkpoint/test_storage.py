"""A save that fails, and states that this program did not write; tests/ranks holds the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from and_dist.checkpoint.storage import CorruptCheckpoint, read_checkpoint, save_checkpoint
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from benchmarks.common.rank_pool import RankPool


@pytest.mark.parametrize("text", ["[]", "{}", '"format"', "3"])
def test_a_state_that_is_none_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"cannot be read: state\.json is none of ours"):
        read_checkpoint(tmp_path)


def save_here(world: World, folder: Path) -> None:
    save_checkpoint(folder, "one", {"weight": torch.ones(2)}, {}, world)


def save_what_no_file_takes(world: World, folder: Path) -> str:
    with pytest.raises(AllRanksError) as failed:
        save_checkpoint(folder, "other", {"odd": torch.eye(3, dtype=torch.complex128)}, {}, world)
    return str(failed.value)


def test_a_save_that_fails_leaves_nothing(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, save_here, tmp_path)
    sentences = ranks.run(2, save_what_no_file_takes, tmp_path)
    assert all("writing checkpoint other failed: rank " in sentence for sentence in sentences)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one"]
