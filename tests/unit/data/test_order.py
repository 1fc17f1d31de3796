from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_dist.data.order import Order, permute

counts = st.integers(1, 3000)
seeds = st.integers(0, 2**63 - 1)


@given(counts, seeds, st.integers(0, 10**6))
def test_order_is_a_permutation(num_rows: int, seed: int, epoch: int) -> None:
    rows = permute(np.arange(num_rows), num_rows, seed, epoch)
    assert sorted(rows.tolist()) == list(range(num_rows))


@given(counts, seeds, st.data())
def test_a_position_alone_gives_the_row_it_has_among_all(
    num_rows: int, seed: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, num_rows - 1))
    all_rows = permute(np.arange(num_rows), num_rows, seed, 3)
    assert permute([position], num_rows, seed, 3)[0] == all_rows[position]


def test_imagenet_is_permuted_without_a_list_of_it() -> None:
    positions = np.arange(0, 1_281_167, 997)
    rows = permute(positions, 1_281_167, 0, 0)
    assert len(np.unique(rows)) == len(positions)
    assert rows.min() >= 0
    assert rows.max() < 1_281_167


def test_epochs_and_seeds_differ() -> None:
    orders = [permute(np.arange(1000), 1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    same = [(a == b).mean() for at, a in enumerate(orders) for b in orders[at + 1 :]]
    assert max(same) < 0.01


def test_every_row_reaches_every_place_equally_often() -> None:
    """Chi-squared over 4,000 orders of 23 rows; 99.9 % quantile of 22*22 degrees is 586."""
    seen = np.zeros((23, 23))
    for epoch in range(4000):
        seen[np.arange(23), permute(np.arange(23), 23, 7, epoch)] += 1
    expected = 4000 / 23
    assert ((seen - expected) ** 2 / expected).sum() < 586


@given(counts, st.integers(1, 300), st.integers(1, 9), seeds)
def test_ranks_tile_each_step_and_steps_tile_the_epoch(
    num_rows: int, batch_size: int, size: int, seed: int
) -> None:
    order = Order(num_rows, batch_size, seed)
    epoch_rows = []
    for step in range(order.steps_per_epoch):
        parts = [order.local_rows(2, step, rank, size) for rank in range(size)]
        assert len({len(part.rows_B) for part in parts}) == 1
        rows = np.concatenate([part.rows_B for part in parts])
        rows = rows[rows >= 0]
        assert rows.tolist() == order.global_rows(2, step).tolist()
        assert len(rows) == order.num_images(step)
        for part in parts:
            real = part.rows_B >= 0
            assert (part.images_B[real] == part.rows_B[real]).all()
            assert set(part.images_B.tolist()) <= set(rows.tolist())
        epoch_rows += rows.tolist()
    assert sorted(epoch_rows) == list(range(num_rows))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_rank_trains_on_a_lone_image(size: int) -> None:
    local = Order(65, 64, 0).local_rows(0, 1, 0, size)
    assert len(local.rows_B) >= 2
