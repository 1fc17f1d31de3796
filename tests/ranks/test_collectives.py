from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from and_dist.distributed.collectives import (
    broadcast_from_coordinator,
    broadcast_object,
    equal_blocks,
    exchange_parts,
    gather_batch,
    gather_objects,
    gather_to_coordinator,
    on_coordinator,
    reduce_sum,
    take_rows,
)
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from benchmarks.common.rank_pool import SIZES, RankPool


def mixed_tensors(rank: int, length: int) -> list[Tensor]:
    base = torch.arange(length * 6).view(length, 2, 3) + 1000 * rank
    return [base.half(), base.double(), base[:, 0, 0].clone(), base[:, :0], base[:, 0, 0] % 2 == 0]


def gather_here(world: World, length: int) -> list[Tensor]:
    return gather_batch(world, mixed_tensors(world.rank, length))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [1, 5])
def test_gather_is_in_rank_order_and_keeps_types(ranks: RankPool, size: int, length: int) -> None:
    parts = [mixed_tensors(rank, length) for rank in range(size)]
    expected = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    for gathered in ranks.run(size, gather_here, length):
        for ours, theirs in zip(gathered, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def exchange_here(world: World, length: int) -> list[Tensor]:
    return exchange_parts(world, mixed_tensors(world.rank, length * world.size))


@pytest.mark.parametrize("size", SIZES)
def test_exchange_brings_everyones_part_about_my_queries(ranks: RankPool, size: int) -> None:
    parts = [mixed_tensors(rank, 3 * size) for rank in range(size)]
    for rank, received in enumerate(ranks.run(size, exchange_here, 3)):
        for at, ours in enumerate(received):
            theirs = torch.stack([part[at][3 * rank : 3 * rank + 3] for part in parts])
            assert torch.equal(ours, theirs)


def small_ones(world: World) -> tuple[Tensor, Tensor | None, Tensor]:
    mine = torch.tensor([float(world.rank), 1.0])
    return (
        reduce_sum(world, mine.clone()),
        gather_to_coordinator(world, mine),
        broadcast_from_coordinator(world, mine.clone()),
    )


def test_sums_gathers_and_broadcasts(ranks: RankPool) -> None:
    for rank, (total, gathered, told) in enumerate(ranks.run(3, small_ones)):
        assert total.tolist() == [3, 3]
        assert told.tolist() == [0, 1]
        assert (gathered is None) == (rank > 0)
        if gathered is not None:
            assert gathered.tolist() == [[0, 1], [1, 1], [2, 1]]


def blocks_here(world: World) -> list[list[int]]:
    rows = torch.arange([5, 0, 2][world.rank])
    return [block.tolist() for block in equal_blocks(world, rows, 3)]


def test_blocks_are_as_many_and_as_long_on_every_rank(ranks: RankPool) -> None:
    expected = [
        [[0, 1, 2], [3, 4]],
        [[-1, -1, -1], [-1, -1]],
        [[0, 1, -1], [-1, -1]],
    ]
    assert ranks.run(3, blocks_here) == expected


def lengths_here(world: World, most_in_all: int) -> list[int]:
    return [len(block) for block in equal_blocks(world, torch.arange(7), 4, most_in_all)]


def test_blocks_of_all_ranks_together_are_no_longer_in_a_larger_world(ranks: RankPool) -> None:
    assert ranks.run(1, lengths_here, 8) == [[4, 3]]
    assert ranks.run(2, lengths_here, 8) == [[4, 3]] * 2
    assert ranks.run(4, lengths_here, 8) == [[2, 2, 2, 1]] * 4
    assert ranks.run(4, lengths_here, 3) == [[1] * 7] * 4


def test_padding_takes_zeros_even_from_nothing() -> None:
    positions = torch.tensor([1, -1])
    assert take_rows(torch.tensor([5, 7]), positions).tolist() == [7, 0]
    assert take_rows(torch.empty(0, 2), torch.tensor([-1])).tolist() == [[0, 0]]


def told_by_the_coordinator(world: World) -> tuple[object, object, Tensor]:
    def only_here() -> object:
        assert world.is_coordinator
        return {"names": ["é", None], "sums": np.arange(6.0).reshape(2, 3), 7: True}

    mine = torch.full((3,), world.rank, dtype=torch.int64)
    return (
        on_coordinator(world, "counting", only_here),
        broadcast_object(world, [world.rank, (1.5, "x")]),
        on_coordinator(world, "adding", lambda: torch.tensor([1, 2, 3]), like=mine),
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_the_coordinator_computes_is_the_same_on_all_ranks(ranks: RankPool, size: int) -> None:
    for found, told, added in ranks.run(size, told_by_the_coordinator):
        assert isinstance(found, dict)
        array = found.pop("sums")
        assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert array.dtype == np.float64
        assert found == {"names": ["é", None], "7": True}
        assert told == [0, [1.5, "x"]]
        assert added.tolist() == [1, 2, 3]


def fail_on_the_coordinator(world: World) -> str:
    with pytest.raises(AllRanksError) as failed:
        on_coordinator(world, "choosing", lambda: 1 / 0)
    with pytest.raises(AllRanksError, match="neither plain JSON nor an array"):
        broadcast_object(world, Path("/"))
    return str(failed.value)


@pytest.mark.parametrize("size", [1, 3])
def test_what_fails_on_the_coordinator_is_raised_on_all_ranks(ranks: RankPool, size: int) -> None:
    sentence = "choosing failed on rank 0: ZeroDivisionError: division by zero"
    assert ranks.run(size, fail_on_the_coordinator) == [sentence] * size


def gather_values(world: World) -> tuple[list[Any], str]:
    """Values of unlike lengths, an array among them; then one that cannot travel."""
    values = gather_objects(world, ["é" * world.rank, {"of": np.arange(world.rank)}, (None, 1.5)])
    hopeless: Any = [1] if world.rank == 0 else [1, {Path("/")}]
    if world.size == 1:
        return values, ""
    with pytest.raises(AllRanksError) as failed:
        gather_objects(world, hopeless)
    return values, str(failed.value)


@pytest.mark.parametrize("size", SIZES)
def test_values_of_all_ranks_are_plain_and_nothing_is_pickled(ranks: RankPool, size: int) -> None:
    for values, sentence in ranks.run(size, gather_values):
        assert [text for text, *_ in values] == ["é" * rank for rank in range(size)]
        assert [about["of"].tolist() for _, about, _ in values] == [
            list(range(rank)) for rank in range(size)
        ]
        assert [rest for *_, rest in values] == [[None, 1.5]] * size
        assert size == 1 or "gathering values failed on rank 1: TypeError: set is" in sentence


def test_no_collective_of_pickles_is_called() -> None:
    """torch's collectives of objects unpickle what they receive."""
    for file in [*Path("and_dist").rglob("*.py"), *Path("launcher").rglob("*.py")]:
        assert not re.search(r"_object(_list)?\(.*group|import pickle|dill", file.read_text()), file
