"""A save that fails, and states that this program did not write; tests/ranks holds the rest."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from and_dist.checkpoint.storage import CorruptCheckpoint, read_checkpoint, save_checkpoint
from and_dist.checkpoint.tensor_files import TYPES, share_of
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, shard_range
from benchmarks.common.rank_pool import SIZES, RankPool


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


def save_of_all_kinds(world: World, folder: Path) -> None:
    rows = shard_range(7, world.rank, world.size)
    features = torch.arange(21.0).view(7, 3)[slice(*rows)].to(torch.bfloat16)
    bank = MemoryBank(features, rows[0], 7, 0.5)
    save_checkpoint(folder, "one", of_all_kinds(), {}, world, bank)


def of_all_kinds() -> dict[str, torch.Tensor]:
    """Return tensors of every type and of odd shapes and strides."""
    kinds = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in TYPES}
    odd = {
        "scalar": torch.tensor(3.5),
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "none": torch.ones(0, 4),
    }
    return kinds | odd


@pytest.mark.parametrize("size", SIZES)
def test_torch_reads_what_was_written(ranks: RankPool, tmp_path: Path, size: int) -> None:
    """Load by torch's own reader of this layout, which joins the parts of the bank."""
    ranks.run(size, save_of_all_kinds, tmp_path)
    written = of_all_kinds() | {"bank": torch.arange(21.0).view(7, 3).to(torch.bfloat16)}
    read = {name: torch.zeros_like(tensor) for name, tensor in written.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = dcp.HuggingFaceStorageReader(str(tmp_path / "one"))
        dcp.load(read, storage_reader=reader, no_dist=True)
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_every_rank_writes_about_as_much() -> None:
    tensors = {str(size): torch.empty(size) for size in (1, 2, 3, 40, 50, 60, 100)}
    shares = [share_of(tensors, rank, 3) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    assert [sum(map(int, share)) for share in shares] == [100, 66, 90]


def test_a_save_that_fails_leaves_nothing(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(2, save_here, tmp_path)
    sentences = ranks.run(2, save_what_no_file_takes, tmp_path)
    why = "writing checkpoint other failed on rank 0: ValueError: odd is of torch.complex128"
    assert all(why in sentence for sentence in sentences)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one"]
