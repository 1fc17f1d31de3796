"""Tensors as the files of several ranks hold them, whole or some of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from and_dist.checkpoint.storage import load_tensors
from and_dist.checkpoint.tensor_files import SHARDING, TensorFiles
from and_dist.distributed.world import World
from benchmarks.common.rank_pool import RankError, RankPool

ROWS_ND = torch.arange(14.0).view(7, 2)


def write(folder: Path, rank: int, **parts: tuple[list[int], Tensor]) -> None:
    """The file of a rank: each tensor with the offsets of its part, as torch's DCP writes it."""
    offsets = {name: {"saved_offsets": at} for name, (at, _) in parts.items()}
    file = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
    tensors = {name: tensor.contiguous() for name, (_, tensor) in parts.items()}
    save_file(tensors, file, {SHARDING: json.dumps(offsets)})


def write_rows(folder: Path, *ranges: tuple[int, int]) -> TensorFiles:
    for rank, (start, stop) in enumerate(ranges):
        write(folder, rank, rows=([start, 0], ROWS_ND[start:stop]))
    return TensorFiles(folder)


@pytest.mark.parametrize("start", range(7))
@pytest.mark.parametrize("length", [0, 1, 3, 7])
@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 7)],
        [(0, 3), (3, 7)],
        [(4, 7), (0, 2), (2, 4)],  # files in another order
        [(0, 3), (3, 3), (3, 7)],  # an empty piece
        [(0, 4), (4, 7), (7, 7)],
    ],
)
def test_any_rows_are_read_from_any_pieces(
    tmp_path: Path, ranges: list[tuple[int, int]], start: int, length: int
) -> None:
    stop = min(start + length, 7)
    read = torch.full((stop - start, 2), -1.0)
    write_rows(tmp_path, *ranges).fill("rows", read, start, 7)
    assert torch.equal(read, ROWS_ND[start:stop])


@pytest.mark.parametrize("ranges", [[(0, 7)], [(0, 3), (3, 7)]])
def test_a_whole_tensor_needs_no_place(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    read = torch.empty(7, 2)
    write_rows(tmp_path, *ranges).fill("rows", read)
    assert torch.equal(read, ROWS_ND)


def test_pieces_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    files = write_rows(tmp_path, (4, 7), (0, 2), (2, 4))
    assert [piece[:2] for piece in files.pieces("rows")] == [(0, 2), (2, 4), (4, 7)]
    assert files.pieces("others") == []


def test_a_scalar_and_tensors_without_rows_are_read(tmp_path: Path) -> None:
    write(tmp_path, 0, count=([], torch.tensor(3)), nothing=([0], torch.empty(0)))
    write(tmp_path, 1, narrow=([0, 0], torch.empty(0, 2)))
    files, count = TensorFiles(tmp_path), torch.tensor(0)
    files.fill("count", count)
    files.fill("nothing", torch.empty(0))
    files.fill("narrow", torch.empty(0, 2))
    assert count == 3


@pytest.mark.parametrize(
    ("name", "shape", "num_rows", "sentence"),
    [
        ("rows", (7, 3), None, "rows is stored as [7, 2], not as [7, 3]"),
        ("rows", (6, 2), None, "rows is stored as [7, 2], not as [6, 2]"),
        ("rows", (3, 2), 8, "rows is stored as [7, 2], not as [8, 2]"),
        ("rows", (14,), None, "rows is stored as [7, 2], not as [14]"),
        ("rows", (), None, "rows is stored as [7, 2], not as []"),
        ("count", (1,), None, "count is stored as [], not as [1]"),
        ("other", (7, 2), None, "other is stored as None, not as [7, 2]"),
    ],
)
def test_what_is_stored_otherwise_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], num_rows: int | None, sentence: str
) -> None:
    write(tmp_path, 0, rows=([0, 0], ROWS_ND[:3]), count=([], torch.tensor(3)))
    write(tmp_path, 1, rows=([3, 0], ROWS_ND[3:]))
    with pytest.raises(ValueError) as refused:
        TensorFiles(tmp_path).fill(name, torch.empty(shape), 0, num_rows)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 3), (4, 7)],  # a hole
        [(0, 4), (3, 7)],  # rows twice
        [(1, 7)],  # no beginning
        [(0, 3), (0, 3), (3, 7)],  # a file twice
    ],
)
def test_pieces_that_do_not_make_a_whole_are_refused(
    tmp_path: Path, ranges: list[tuple[int, int]]
) -> None:
    files = write_rows(tmp_path, *ranges)
    with pytest.raises(ValueError, match=r"^rows is stored as None, not as \[7, 2\]$"):
        files.fill("rows", torch.empty(2, 2), 5, 7)


def test_pieces_of_different_widths_are_refused(tmp_path: Path) -> None:
    """One column would be spread over both."""
    write(tmp_path, 0, rows=([0, 0], ROWS_ND[:3]))
    write(tmp_path, 1, rows=([3, 0], ROWS_ND[3:, :1]))
    with pytest.raises(ValueError, match=r"^rows is stored as None"):
        TensorFiles(tmp_path).fill("rows", torch.empty(7, 2))


def test_a_file_of_somebody_elses_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, (0, 7))
    save_file({"weight": torch.ones(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match=r"theirs\.safetensors does not say .* not a file of ours"):
        TensorFiles(tmp_path)


def test_values_take_the_type_of_the_given_tensor(tmp_path: Path) -> None:
    files, read = write_rows(tmp_path, (0, 3), (3, 7)), torch.empty(7, 2, dtype=torch.float64)
    files.fill("rows", read)
    assert torch.equal(read, ROWS_ND.double())


def load_here(world: World, folder: Path, wrong_rank: int) -> Tensor:
    read_SD = torch.zeros(7, 3 if world.rank == wrong_rank else 2)
    load_tensors(folder, {"rows": read_SD}, world)
    return read_SD


def test_what_one_rank_cannot_load_ends_all_with_the_checkpoints_name(
    ranks: RankPool, tmp_path: Path
) -> None:
    write_rows(tmp_path, (0, 3), (3, 7))
    assert all(torch.equal(rows, ROWS_ND) for rows in ranks.run(3, load_here, tmp_path, -1))
    with pytest.raises(RankError) as caught:
        ranks.run(3, load_here, tmp_path, 1)
    sentence = f"loading checkpoint {tmp_path} failed on rank 1"
    assert sorted(caught.value.errors) == [0, 1, 2]
    assert all(sentence in str(error) for error in caught.value.errors.values())
    assert all("[7, 2], not as [7, 3]" in str(error) for error in caught.value.errors.values())


@pytest.mark.parametrize("offsets", [[-1, 0], [1.5, 0], [True, 0], ["0", 0], [0, -1], {}, None, 3])
def test_offsets_that_are_none_are_refused(tmp_path: Path, offsets: Any) -> None:
    write(tmp_path, 0, rows=([0, 0], ROWS_ND))
    assert TensorFiles(tmp_path).pieces("rows")
    write(tmp_path, 0, rows=(offsets, ROWS_ND))
    with pytest.raises(ValueError, match="it is not a file of ours: nothing is said of rows"):
        TensorFiles(tmp_path)


@pytest.mark.parametrize("sharding", ["[]", "3", "null", "[" * 100_000, "{", '{"rows": []}'])
def test_other_metadata_is_refused(tmp_path: Path, sharding: str) -> None:
    file = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    save_file({"rows": ROWS_ND}, file, {SHARDING: sharding})
    with pytest.raises(ValueError, match="it is not a file of ours"):
        TensorFiles(tmp_path)


def test_a_link_among_the_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 0, rows=([0, 0], ROWS_ND))
    file = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
    file.rename(tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is a link and no file of the checkpoint"):
        TensorFiles(tmp_path)
