from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from and_dist.config.optim_schema import OptimConfig, TrainingOptimConfig
from and_dist.config.schema import Config
from and_dist.models.learning_rate import Place, learning_rate, learning_rate_at, peak_rate

STEPS, EPOCHS = 5, 12


def rates(config: TrainingOptimConfig) -> list[float]:
    return [learning_rate_at(config, Place(at, STEPS * EPOCHS, STEPS)) for at in range(60)]


def rates_of_torch(warm: int, after: type[LRScheduler], **options: object) -> list[float]:
    """The rates of torch's schedulers, which are called after every step."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    main = after(optimiser, **options)
    rising = LinearLR(optimiser, start_factor=1 / warm, total_iters=warm - 1)
    schedule = SequentialLR(optimiser, [rising, main], milestones=[warm])
    found = []
    for _ in range(STEPS * EPOCHS):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("milestones", "expected"),
    [
        ((120, 160), {0: 0.03, 119: 0.03, 120: 3e-3, 160: 3e-4}),
        ((80, 120, 160), {79: 0.03, 80: 3e-3, 120: 3e-4, 199: 3e-5}),
    ],
)
def test_the_rate_falls_at_the_milestones(
    milestones: tuple[int, ...], expected: dict[int, float]
) -> None:
    config = OptimConfig(milestones=milestones)
    assert {epoch: learning_rate(config, epoch) for epoch in expected} == pytest.approx(expected)


def test_without_other_keys_a_step_has_the_rate_of_its_epoch_to_the_bit() -> None:
    config = TrainingOptimConfig(milestones=(3, 7), lr=0.07)
    assert rates(config) == [learning_rate(config, at // STEPS) for at in range(60)]


def test_a_cosine_after_a_warm_up_is_that_of_torch() -> None:
    config = TrainingOptimConfig(lr=0.4, schedule="cosine", warmup_epochs=2)
    expected = rates_of_torch(10, CosineAnnealingLR, T_max=50)
    assert rates(config) == pytest.approx(expected, rel=1e-9)
    assert rates(config)[:2] == pytest.approx([0.04, 0.08])


def test_steps_after_a_warm_up_are_those_of_torch() -> None:
    """torch counts its milestones from the end of the warm-up, ours from the start of the span."""
    config = TrainingOptimConfig(lr=0.4, warmup_epochs=2, milestones=(6, 9))
    expected = rates_of_torch(10, MultiStepLR, milestones=[20, 35], gamma=0.1)
    assert rates(config) == pytest.approx(expected, rel=1e-12)


def test_a_part_of_an_epoch_warms_up() -> None:
    config = TrainingOptimConfig(lr=0.4, warmup_epochs=0.5)
    assert rates(config)[:4] == pytest.approx([0.16, 0.32, 0.4, 0.4])


@pytest.mark.parametrize(("batch_size", "expected"), [(64, 0.02), (256, 0.08), (4096, 1.28)])
def test_the_rate_grows_with_the_batch(batch_size: int, expected: float) -> None:
    config = TrainingOptimConfig(batch_size=batch_size, lr_per_256=0.08)
    assert peak_rate(config) == pytest.approx(expected)
    assert rates(config)[0] == pytest.approx(expected)


def test_a_warm_up_that_never_ends_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs = 3 leaves nothing of a round, which has"):
        Config(optim={"warmup_epochs": 3}, curriculum={"epochs": 3})
    with pytest.raises(ValueError, match=r"leaves nothing of the run, which has 6 epochs"):
        Config(optim={"warmup_epochs": 6, "span": "run"}, curriculum={"epochs": 3, "rounds": 1})
    Config(optim={"warmup_epochs": 5, "span": "run"}, curriculum={"epochs": 3, "rounds": 1})
