"""How a profile adds up, of events as torch records them on a GPU; CPUs have theirs in runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import DeviceType

from and_dist.distributed.world import open_world
from and_dist.training.profiling import STEPS, STEPS_BEFORE, StepProfile, add_up_kernels
from and_dist.utils.step_phases import MARK, step_phase


def event(name: str, start: float, end: float, *kernels: tuple[str, float], **other: Any) -> Any:
    """Of microseconds; kernels are (name, duration)."""
    return SimpleNamespace(
        name=name,
        device_type=other.get("device_type", DeviceType.CPU),
        time_range=SimpleNamespace(start=start, end=end),
        kernels=[SimpleNamespace(name=kernel, duration=took) for kernel, took in kernels],
    )


def test_kernels_belong_to_the_part_that_launched_them() -> None:
    """The part of the backward pass waits, while another thread launches its kernels."""
    events = [
        event(MARK + "encoder, forward", 0, 10),
        event("aten::conv2d", 2, 8, ("conv", 40.0)),
        event(MARK + "backward", 10, 100),
        event("ConvolutionBackward0", 20, 90, ("conv_back", 70.0), ("sum", 5.0)),
        event("aten::add_", 105, 106, ("add", 3.0)),  # between two parts
        event(MARK + "backward", 12, 95, device_type=DeviceType.CUDA),
        event("conv", 30, 70, device_type=DeviceType.CUDA),
    ]
    found = add_up_kernels(events, 200e-6)
    by_part = {name: round(1e6 * seconds) for name, seconds in found.by_part.items() if seconds}
    assert by_part == {"encoder, forward": 40, "backward": 75}
    assert round(1e6 * found.elsewhere) == 200 - 115
    kernels = {name: round(1e6 * seconds) for name, seconds in found.by_operator.items()}
    assert kernels == {"conv_back": 70, "conv": 40, "sum": 5, "add": 3}


def watch(folder: Path, epochs: int, steps: int) -> tuple[list[int], str | None]:
    """After which steps something was said, and what is said at last."""
    told = []
    with open_world("cpu") as world:
        watched = StepProfile(folder, world, is_wanted=True)
        for step in range(epochs * steps):
            with step_phase("loss"):
                torch.ones(10).sum()
            if watched.end_of_step(steps - step % steps - 1, steps):
                told.append(step)
        return told, watched.finish()


def test_the_steps_seen_are_of_one_epoch(tmp_path: Path) -> None:
    long = STEPS_BEFORE + STEPS
    assert watch(tmp_path, 1, long) == ([long - 1], None)
    # too late in the first epoch; the second is seen from its first step on
    begin_in_the_second = long - 1 + STEPS
    told, _ = watch(tmp_path, 2, long - 1)
    assert told == [begin_in_the_second]
    short = STEPS // 2
    assert len(watch(tmp_path, 9, short)[0]) == 1
    told, said = watch(tmp_path, 1, long - 1)
    assert not told
    assert said is not None
    assert f"this start had {long - 1}" in said


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("in the way")
    with open_world("cpu") as world:
        watched = StepProfile(tmp_path, world, is_wanted=True)
        said = [watched.end_of_step(100, 200) for _ in range(STEPS_BEFORE + STEPS)]
    assert said[-1] is not None
    assert "could not be written" in said[-1]
    assert f"{STEPS} steps of rank 0" in said[-1]
