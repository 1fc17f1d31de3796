"""Parts of a batch, one after the other, train what the whole batch trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from and_dist.data.loader import Batch
from and_dist.distributed.world import lone_world
from and_dist.training.accumulation import cut
from and_dist.training.session import load_and_check
from benchmarks.common.rank_pool import RankPool
from tests.ranks.runs import (
    assert_equal_to_the_bit,
    checkpoint_of,
    debug_config,
    losses_of,
    train,
    train_until,
)

SHORT = "curriculum.rounds=1", "curriculum.epochs=2", "data.limit=61", "optim.batch_size=24"
"""Batches that neither ranks nor parts divide, and a last one of 13 images."""


@pytest.mark.parametrize(
    ("size", "method"),
    [
        (1, "and"),
        (3, "and"),
        *(pytest.param(2, method, marks=pytest.mark.thorough) for method in ("and", "supervised")),
        *(pytest.param(size, "supervised", marks=pytest.mark.thorough) for size in (1, 3)),
    ],
)
def test_parts_learn_what_the_whole_batch_learns(
    ranks: RankPool, tmp_path: Path, size: int, method: str
) -> None:
    """Loss, weights, momentum and bank; the rows of no part are written before the last."""
    given = *SHORT, f"method={method}"
    whole = debug_config(tmp_path, "name=whole", *given)
    parts = debug_config(tmp_path, "name=parts", *given, "optim.accumulate=3")
    for config in (whole, parts):
        ranks.run(size, train, config)
    torch.testing.assert_close(losses_of(parts.folder), losses_of(whole.folder), rtol=1e-5, atol=0)
    ours, theirs = checkpoint_of(parts.folder), checkpoint_of(whole.folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=2e-4, atol=2e-6, equal_nan=True, msg=name
        )


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(("optim.accumulate=2", "encoder.name=small"), marks=pytest.mark.thorough),
        ("optim.name=adamw", "optim.lr=0.001", "optim.weight_decay=0.05"),
        pytest.param(
            ("optim.name=adamw", "optim.lr=0.001", "optim.fused=false", "optim.layer_decay=0.7"),
            marks=pytest.mark.thorough,
        ),
        (
            "optim.name=lars",
            "optim.lr=1",
            "optim.schedule=cosine",
            "optim.span=run",
            "optim.warmup_epochs=1.5",
            "optim.clip_norm=0.5",
            "optim.weight_decay_of=matrices",
        ),
    ],
)
def test_a_run_goes_on_to_the_bit(ranks: RankPool, tmp_path: Path, given: tuple[str, ...]) -> None:
    whole = debug_config(tmp_path, "name=whole", *SHORT, *given)
    broken = debug_config(tmp_path, "name=broken", *SHORT, *given)
    ranks.run(2, train, whole)
    ranks.run(2, train_until, broken, 3)
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, whole.folder)


def test_no_part_is_a_single_image() -> None:
    world = lone_world(torch.device("cpu"))
    for length in range(2, 40):
        batch = Batch(torch.zeros(length, 3, 1, 1), torch.arange(length))
        for count in range(1, length + 1):
            parts = [part.rows_B.tolist() for part in cut(batch, count, world)]
            assert [row for part in parts for row in part] == list(range(length))
            assert len(parts) <= count
            assert min(map(len, parts)) >= 2
            assert max(map(len, parts)) <= max(3, -(-length // count))


def test_the_last_batch_of_an_epoch_has_no_part_of_one_image(
    ranks: RankPool, tmp_path: Path
) -> None:
    """Batch norm in the head says nothing of a single image."""
    given = "encoder.head=mlp", "encoder.hidden_norm=true", "optim.accumulate=12"
    ranks.run(1, train, debug_config(tmp_path, *SHORT, *given))


@pytest.mark.parametrize("method", ["nat", "instance_nce"])
def test_methods_that_look_at_whole_batches_are_refused(tmp_path: Path, method: str) -> None:
    config = debug_config(tmp_path, f"method={method}", "optim.accumulate=2")
    with pytest.raises(ValueError, match=f"accumulate = 2: method={method} looks at all images"):
        load_and_check(config)


def test_parts_of_less_than_two_images_are_refused(tmp_path: Path) -> None:
    load_and_check(debug_config(tmp_path, "optim.accumulate=24"))
    with pytest.raises(ValueError, match=r"accumulate = 25: a rank has 48 images .* at most 24$"):
        load_and_check(debug_config(tmp_path, "optim.accumulate=25"))
