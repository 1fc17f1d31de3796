from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from and_dist.method.memory_bank import MemoryBank, all_shards, draw_uniform_rows, shard_range


@given(st.integers(0, 5000), st.integers(1, 40))
def test_shards_are_cut_like_torch_chunk(num_rows: int, size: int) -> None:
    ranges = [shard_range(num_rows, rank, size) for rank in range(size)]
    assert all_shards(num_rows, size) == ranges
    chunks = torch.arange(num_rows).chunk(size) if num_rows else ()
    lengths = [len(chunk) for chunk in chunks] + [0] * (size - len(chunks))
    assert [stop - start for start, stop in ranges] == lengths
    assert ranges[0][0] == 0
    assert ranges[-1][1] == num_rows
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_first_rows_do_not_depend_on_the_cut() -> None:
    whole_ND = draw_uniform_rows(0, 1003, 128, seed=3)
    parts = [draw_uniform_rows(*shard_range(1003, rank, 4), 128, seed=3) for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole_ND)
    assert not torch.equal(draw_uniform_rows(0, 1003, 128, seed=4), whole_ND)


def test_first_rows_are_uniform_within_the_bound() -> None:
    rows_ND = draw_uniform_rows(0, 4000, 128, seed=0)
    bound = (128 / 3) ** -0.5
    assert rows_ND.abs().max() <= bound
    assert rows_ND.mean().abs() < 1e-3
    assert rows_ND.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert torch.corrcoef(rows_ND[:200]).fill_diagonal_(0).abs().max() < 0.5


def test_rows_of_other_shards_change_nothing() -> None:
    features_SD = torch.randn(5, 8)
    bank = MemoryBank(features_SD.clone(), 10, 40, 0.5)
    bank.update(torch.tensor([3, 15, -1, 39]), torch.randn(4, 8))
    assert torch.equal(bank.features_SD, features_SD)
    assert (bank.start, bank.stop) == (10, 15)


def test_an_empty_shard_takes_an_update() -> None:
    bank = MemoryBank(torch.empty(0, 8), 40, 40, 0.5)
    bank.update(torch.tensor([3, 39]), torch.randn(2, 8))
    assert bank.features_SD.shape == (0, 8)


def test_only_the_named_rows_change_and_twice_counts_once() -> None:
    features_SD = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    new_GD = torch.randn(4, 8)
    bank = MemoryBank(features_SD.clone(), 10, 40, 0.25)
    bank.update(torch.tensor([12, 3, 12, 15]), new_GD)
    expected = torch.nn.functional.normalize(
        0.75 * features_SD[[2, 5]] + 0.25 * new_GD[[0, 3]], dim=1
    )
    torch.testing.assert_close(bank.features_SD[[2, 5]], expected)
    assert torch.equal(bank.features_SD[[0, 1, 3, 4]], features_SD[[0, 1, 3, 4]])


def test_the_paper_leaves_rows_unnormalised() -> None:
    bank = MemoryBank(torch.eye(4), 0, 4, 0.5, renormalise=False)
    bank.update(torch.tensor([0]), torch.eye(4)[1:2])
    assert bank.features_SD[0].tolist() == [0.5, 0.5, 0, 0]
