"""Checkpoints: any world size reads what any other wrote, and only whole ones are read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from and_dist.checkpoint.reader import OpenedCheckpoint, refuse_corrupt
from and_dist.checkpoint.storage import (
    find_latest_valid,
    load_tensors,
    prune,
    read_checkpoint,
    read_latest,
    save_checkpoint,
)
from and_dist.config.schema import Config
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank, shard_range
from benchmarks.common.rank_pool import SIZES, RankError, RankPool
from tests.ranks.scenes import shard_of

BANK_ND = torch.arange(41 * 3, dtype=torch.float32).view(41, 3)


def save_here(world: World, folder: Path, name: str, bank_ND: Tensor, epoch: int = 1) -> None:
    bank = shard_of(bank_ND, world)
    tensors = {
        "weight": torch.full((2, 2), 7.0),
        "counter": torch.tensor(3),
        "nothing": torch.empty(0, dtype=torch.int64),
    }
    save_checkpoint(folder, name, tensors, {"epoch": epoch}, world, bank)


def load_here(world: World, checkpoint: Path, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    start, stop = shard_range(num_rows, world.rank, world.size)
    bank = MemoryBank(torch.zeros(stop - start, 3), start, num_rows, 0.5)
    tensors = {
        "weight": torch.zeros(2, 2),
        "counter": torch.tensor(0),
        "nothing": torch.empty(0, dtype=torch.int64),
    }
    load_tensors(checkpoint, tensors, world, bank)
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
    prune(folder, keep, always.__contains__, world)


def test_pruning_keeps_the_newest_and_the_named(ranks: RankPool, tmp_path: Path) -> None:
    for name in ("r00-e0001", "r00-e0002", "r00-e0003", "r01-e0001", "r01-e0002"):
        ranks.run(1, save_here, tmp_path, name, BANK_ND)
    ranks.run(2, prune_here, tmp_path, 2, {"r00-e0003"})
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left == ["r00-e0003", "r01-e0001", "r01-e0002"]


def test_a_checkpoint_of_another_format_is_refused(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(1, save_here, tmp_path, "r00-e0001", BANK_ND)
    state = tmp_path / "r00-e0001" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 0}))
    with pytest.raises(ValueError, match="is of format 0, this program reads format 3"):
        read_latest(tmp_path)
    state.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        read_latest(tmp_path)


def test_an_unfinished_checkpoint_is_not_seen(ranks: RankPool, tmp_path: Path) -> None:
    ranks.run(1, save_here, tmp_path, "one", BANK_ND)
    (tmp_path / ".two.unfinished").mkdir()
    checkpoint, _ = read_latest(tmp_path) or pytest.fail("nothing was saved")
    assert checkpoint.name == "one"


def flip_a_bit(checkpoint: Path) -> str:
    shard = shards_of(checkpoint)[0]
    content = bytearray(shard.read_bytes())
    content[-9] ^= 4
    shard.write_bytes(content)
    return "its content is not what was written"


def cut_a_shard(checkpoint: Path) -> str:
    shard = shards_of(checkpoint)[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    return "bytes instead of"


def lose_a_shard(checkpoint: Path) -> str:
    shards_of(checkpoint)[-1].unlink()
    return "No such file"


def add_a_shard(checkpoint: Path) -> str:
    added = "shard-00009-model-00001-of-00001.safetensors"
    (checkpoint / added).write_bytes(shards_of(checkpoint)[0].read_bytes())
    return f"{added} does not belong to it"


def change_the_state(checkpoint: Path) -> str:
    state = checkpoint / "state.json"
    state.write_text(state.read_text().replace('"epoch": 2', '"epoch": 3'))
    return "state.json is not as written"


def cut_the_state(checkpoint: Path) -> str:
    state = checkpoint / "state.json"
    state.write_text(state.read_text()[:40])
    return "cannot be read"


def lose_the_state(checkpoint: Path) -> str:
    (checkpoint / "state.json").unlink()
    return "cannot be read"


def lose_everything(checkpoint: Path) -> str:
    shutil.rmtree(checkpoint)
    return "there is no checkpoint"


DAMAGES = (
    flip_a_bit,
    cut_a_shard,
    lose_a_shard,
    add_a_shard,
    change_the_state,
    cut_the_state,
    lose_the_state,
    lose_everything,
)


def shards_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("*.safetensors"))


def find_here(world: World, folder: Path) -> tuple[str, dict[str, Any] | None, list[str]]:
    said: list[str] = []
    found = find_latest_valid(folder, world, said.append)
    return ("", None, said) if found is None else (found[0].name, found[1], said)


def save_two(ranks: RankPool, folder: Path) -> None:
    for epoch, name in enumerate(("r00-e0001", "r00-e0002"), 1):
        ranks.run(2, save_here, folder, name, BANK_ND * epoch, epoch)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("size", [1, 3])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    ranks: RankPool, tmp_path: Path, damage: Callable[[Path], str], size: int
) -> None:
    save_two(ranks, tmp_path)
    assert ranks.run(size, find_here, tmp_path)[0][0] == "r00-e0002"
    why = damage(tmp_path / "r00-e0002")
    for name, state, said in ranks.run(size, find_here, tmp_path):
        assert name == "r00-e0001"
        assert state is not None
        assert state["epoch"] == 1
        (sentence,) = said
        assert why in sentence
        assert "r00-e0002" in sentence
    results = ranks.run(size, load_here, tmp_path / "r00-e0001", 41)
    assert torch.equal(torch.cat([bank for bank, _, _ in results]), BANK_ND)
    if damage is not lose_everything:
        assert (tmp_path / ".r00-e0002.damaged").is_dir(), "it can still be looked at"


@pytest.mark.parametrize("text", ["", ".", "..", "/tmp", "r00-e0001/..", "a\0b", "\n\n"])
def test_a_pointer_that_names_no_checkpoint_is_passed_over(
    ranks: RankPool, tmp_path: Path, text: str
) -> None:
    save_two(ranks, tmp_path)
    (tmp_path / "latest").write_text(text)
    assert [found[::2] for found in ranks.run(2, find_here, tmp_path)] == [("r00-e0002", [])] * 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "r00-e0001",
        "r00-e0002",
    ]


def test_what_was_put_aside_is_not_forgotten(ranks: RankPool, tmp_path: Path) -> None:
    """The first start names the damage; the next must not begin anew as if nothing had been."""
    ranks.run(2, save_here, tmp_path, "r00-e0001", BANK_ND)
    flip_a_bit(tmp_path / "r00-e0001")
    for sentence in ("its content is not what was written", "r00-e0001.damaged was put aside"):
        with pytest.raises(RankError, match=sentence):
            ranks.run(2, find_here, tmp_path)


def test_without_a_whole_checkpoint_nothing_starts_anew(ranks: RankPool, tmp_path: Path) -> None:
    save_two(ranks, tmp_path)
    flip_a_bit(tmp_path / "r00-e0001")
    cut_a_shard(tmp_path / "r00-e0002")
    with pytest.raises(RankError, match=r"no checkpoint of .* is whole") as refused:
        ranks.run(2, find_here, tmp_path)
    assert all(isinstance(error, ValueError) for error in refused.value.errors.values())


def test_an_older_format_is_refused_and_left_alone(ranks: RankPool, tmp_path: Path) -> None:
    save_two(ranks, tmp_path)
    state = tmp_path / "r00-e0002" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 1}))
    with pytest.raises(RankError, match="is of format 1, this program reads format 3"):
        ranks.run(2, find_here, tmp_path)
    assert state.exists()


def test_where_nothing_was_saved_nothing_is_found(ranks: RankPool, tmp_path: Path) -> None:
    assert ranks.run(2, find_here, tmp_path / "checkpoints") == [("", None, [])] * 2


def save_in_too_small_a_place(world: World, folder: Path) -> str:
    bank = shard_of(torch.zeros(2_000_000, 3), world)
    with pytest.raises(AllRanksError) as failed:
        save_checkpoint(folder, "large", {}, {}, world, bank)
    return str(failed.value)


def test_where_there_is_no_room_a_sentence_says_how_much_it_takes(
    ranks: RankPool, small_disk: Path
) -> None:
    ranks.run(2, save_here, small_disk, "small", BANK_ND)
    (sentence, other) = ranks.run(2, save_in_too_small_a_place, small_disk)
    assert "making room for checkpoint large failed on rank 0" in sentence
    assert "it takes 25 MB, and its disk has 16.8 MB left" in sentence
    assert other == sentence
    assert ranks.run(2, find_here, small_disk)[0][0] == "small"
    assert sorted(path.name for path in small_disk.iterdir()) == ["latest", "small"]


def open_here(world: World, run: Path, names: list[str]) -> None:
    checkpoint, state = read_checkpoint(run / names[world.rank])
    refuse_corrupt(OpenedCheckpoint(run, Config(), checkpoint, state), world)


def test_ranks_do_not_look_at_different_checkpoints(ranks: RankPool, tmp_path: Path) -> None:
    """As when a run saves while the ranks of an evaluation start, one after the other."""
    ranks.run(1, save_here, tmp_path, "r00-e0001", BANK_ND)
    ranks.run(1, save_here, tmp_path, "r00-e0002", BANK_ND)
    ranks.run(2, open_here, tmp_path, ["r00-e0002", "r00-e0002"])
    with pytest.raises(RankError, match=r"rank 0 has opened r00-e0001, rank 1 r00-e0002") as caught:
        ranks.run(2, open_here, tmp_path, ["r00-e0001", "r00-e0002"])
    assert sorted(caught.value.errors) == [0, 1]


def describe_tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def add_notes(folder: Path) -> Path:
    """A folder of notes that sorts after every checkpoint."""
    (folder / "zz-notes").mkdir()
    (folder / "zz-notes" / "notes.txt").write_text("what I tried")
    return folder / "zz-notes"


def add_hidden(folder: Path) -> Path:
    (folder / ".mine.unfinished").mkdir()
    (folder / ".mine.unfinished" / "notes.txt").write_text("what I tried")
    return folder / ".mine.unfinished"


def keep_a_copy(folder: Path) -> Path:
    return shutil.copytree(folder / "r00-e0001", folder / "r00-e0001-best")


def keep_a_late_copy(folder: Path) -> Path:
    """Under a name of ours that comes after all others."""
    return shutil.copytree(folder / "r00-e0001", folder / "r99-e9999")


def keep_a_late_copy_of_an_earlier_revision(folder: Path) -> Path:
    copy = shutil.copytree(folder / "r00-e0001", folder / "r99-e9999")
    state = json.loads((copy / "state.json").read_text())
    del state["name"], state["sha256"]
    progress = {"round_index": 0, "epochs": 1, "step": 0}
    (copy / "state.json").write_text(json.dumps({**state, "progress": progress}))
    return copy


def add_a_note_to_one(folder: Path) -> Path:
    (folder / "r00-e0001" / "notes.txt").write_text("this is the one")
    return folder / "r00-e0001"


KEPT = (
    add_notes,
    add_hidden,
    keep_a_copy,
    keep_a_late_copy,
    keep_a_late_copy_of_an_earlier_revision,
    add_a_note_to_one,
)


@pytest.mark.parametrize("keep", KEPT)
def test_what_a_user_keeps_beside_checkpoints_is_never_chosen_moved_or_removed(
    ranks: RankPool, tmp_path: Path, keep: Callable[[Path], Path]
) -> None:
    for number in (1, 2, 3):
        ranks.run(2, save_here, tmp_path, f"r00-e000{number}", BANK_ND, number)
    kept = keep(tmp_path)
    before = describe_tree(kept)
    (tmp_path / "latest").unlink()
    assert ranks.run(2, find_here, tmp_path)[0][::2] == ("r00-e0003", [])
    ranks.run(2, prune_here, tmp_path, 2, set())
    ranks.run(2, save_here, tmp_path, "r00-e0004", BANK_ND, 4)
    ranks.run(2, prune_here, tmp_path, 2, set())
    assert describe_tree(kept) == before
    names = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert names == {"r00-e0003", "r00-e0004", kept.name}
    assert ranks.run(2, find_here, tmp_path)[0][0] == "r00-e0004"


def save_over(world: World, folder: Path) -> str:
    with pytest.raises(AllRanksError) as failed:
        save_here(world, folder, "r00-e0002", BANK_ND)
    return str(failed.value)


@pytest.mark.parametrize("what", ["notes.txt", "mine.safetensors", "state.json/notes.txt"])
def test_a_checkpoint_is_not_written_over_something_else(
    ranks: RankPool, tmp_path: Path, what: str
) -> None:
    ranks.run(2, save_here, tmp_path, "r00-e0001", BANK_ND)
    place = tmp_path / "r00-e0002" / what
    place.parent.mkdir(parents=True)
    place.write_text("theirs")
    before = describe_tree(tmp_path)
    for sentence in ranks.run(2, save_over, tmp_path):
        assert re.search(r"r00-e0002 was not written by and-dist, it holds \S+: move it", sentence)
    assert describe_tree(tmp_path) == before
    assert ranks.run(2, find_here, tmp_path)[0][0] == "r00-e0001"


def test_what_a_killed_save_left_goes_with_the_next_pruning(
    ranks: RankPool, tmp_path: Path
) -> None:
    ranks.run(2, save_here, tmp_path, "r00-e0001", BANK_ND)
    token, shard = "0123456789abcdef", "shard-00001-model-00001-of-00001.safetensors"
    for name in (f".r00-e0002.{token}.building", ".r00-e0003.unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / shard).write_bytes(b"half")
    (tmp_path / f".r00-e0002.{token}.building" / ".and-dist-building").write_text(token)
    ranks.run(2, prune_here, tmp_path, 2, set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "r00-e0001"]
