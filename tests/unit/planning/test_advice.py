"""What is advised where a step has too few images for its ranks."""

from __future__ import annotations

import pytest

from and_dist.config.load import load_config
from and_dist.planning.advice import Advice, about_small_batch
from and_dist.planning.catalogue import find_hardware
from and_dist.planning.workload import Job, Size


def advise(
    nodes: int, ranks: int, *overrides: str, rows: int = 100_000, hardware: str | None = None
) -> Advice | None:
    """Return the advice for configs/debug.yaml, whose optim.lr is 0.03, on hardware or unknown."""
    device = None if hardware is None else find_hardware(hardware)
    config = load_config(["configs/debug.yaml"], overrides)
    return about_small_batch(Job(config, rows, Size(nodes, ranks), device))


def test_four_images_a_rank_are_too_few_and_what_would_do_is_said() -> None:
    advice = advise(2, 8, "optim.batch_size=64")
    assert advice == Advice(
        "optim.batch_size=512 optim.lr=0.24 (lr by the linear rule) or 2 ranks, for 32 images each",
        "optim.batch_size=64 has 4 images a step for each of 16 ranks, too few to keep them busy",
    )
    assert advise(2, 8, "optim.batch_size=64", hardware="h100") == advice


def test_no_batch_is_advised_that_is_larger_than_the_set() -> None:
    advice = advise(2, 8, "optim.batch_size=48", rows=200)
    assert advice is not None
    assert advice.change == "1 rank, for 32 images each"


@pytest.mark.parametrize(
    ("nodes", "ranks", "overrides", "hardware"),
    [
        (1, 1, ["optim.batch_size=4"], None),
        (1, 4, ["optim.batch_size=64"], None),
        (1, 3, ["optim.batch_size=100"], None),
        (1, 7, ["optim.batch_size=111"], "h100"),
        (4, 4, ["optim.batch_size=128", "encoder.name=cifar_resnet18"], "cpu"),
    ],
    ids=["one rank", "sixteen images", "does not divide", "nor here", "a slow encoder on CPUs"],
)
def test_ranks_that_are_busy_are_left_alone(
    nodes: int, ranks: int, overrides: list[str], hardware: str | None
) -> None:
    assert advise(nodes, ranks, *overrides, hardware=hardware) is None
