"""Measure loss and speed while training, on the device until the host looks."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from and_dist.utils.step_phases import step_phase

T = TypeVar("T")


class LossMeter:
    """Sums up the losses of an epoch on the device, so that a step never waits.

    send() asks for the sum since the last call and recent() reads it, so that a step lies between
    in which the device gets there.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin an epoch."""
        self._recent_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._first_bad = torch.tensor(-1, device=device)
        self._sent = HostCopy(self._recent_sum)
        self._sent_bad = HostCopy(self._first_bad)
        self.clear()

    def clear(self) -> None:
        """Begin the next epoch."""
        self._recent_sum.zero_()
        self._first_bad.fill_(-1)
        self._recent_images = self._sent_images = 0
        self._earlier_sum, self._earlier_images = 0.0, 0

    def plain(self) -> dict[str, float]:
        """Return what restore() resumes from."""
        return {
            "recent_sum": float(self._recent_sum.item()),
            "recent_images": self._recent_images,
            "earlier_sum": self._earlier_sum,
            "earlier_images": self._earlier_images,
        }

    def restore(self, plain: dict[str, float]) -> None:
        """Resume from what plain() has given."""
        self._recent_sum.fill_(plain["recent_sum"])
        self._first_bad.fill_(-1)
        self._recent_images, self._sent_images = int(plain["recent_images"]), 0
        self._earlier_sum = plain["earlier_sum"]
        self._earlier_images = int(plain["earlier_images"])

    def add(self, loss: Tensor, step: int, images: int) -> None:
        """Add the mean loss of a step over some images, and note the first that is not finite."""
        is_first_bad = ~loss.isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(is_first_bad, step, self._first_bad)
        self._recent_sum += loss * images
        self._recent_images += images

    def first_bad_step(self) -> int | None:
        """Return the first step whose loss was not finite, None if all were."""
        step = int(self._first_bad.item())
        return step if step >= 0 else None

    def send(self) -> None:
        """Send the sum since the last call to the host, without a wait."""
        self._sent.send(self._recent_sum)
        self._sent_bad.send(self._first_bad)
        self._sent_images = self._recent_images
        self._recent_sum.zero_()
        self._recent_images = 0

    def sent_bad_step(self) -> int | None:
        """Return first_bad_step() as it was when the sum was sent."""
        step = int(self._sent_bad.read().item())
        return step if step >= 0 else None

    def recent(self) -> float | None:
        """Return the mean over the images of the sum that was sent; None where there were none."""
        total, images = float(self._sent.read().item()), self._sent_images
        self._earlier_sum += total
        self._earlier_images += images
        self._sent_images = 0
        return total / images if images else None

    def mean(self) -> float | None:
        """Return the mean over all images up to the last call of recent()."""
        return self._earlier_sum / self._earlier_images if self._earlier_images else None


class HostCopy:
    """Holds a tensor's values on the host, as they were when they were sent."""

    def __init__(self, tensor: Tensor) -> None:
        """Take memory that a GPU writes to by itself."""
        is_cuda = tensor.is_cuda
        self._values = torch.empty_like(tensor, device="cpu", pin_memory=is_cuda)
        self._is_there = torch.cuda.Event() if is_cuda else None

    def send(self, tensor: Tensor) -> None:
        """Let the device write the values once it has them."""
        self._values.copy_(tensor, non_blocking=True)
        if self._is_there is not None:
            self._is_there.record()

    def read(self) -> Tensor:
        """Return the values, once the device has written them."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._values


class Pace(NamedTuple):
    """Tells how fast this rank was over some steps."""

    images_per_s: float
    """Images of the global batch a second."""
    data_wait: float
    """Share of the time that was spent waiting for the next batch."""


class StepClock:
    """Measures the speed between two logs."""

    def __init__(self, device: torch.device) -> None:
        """Start the clock."""
        self._device = device
        self._images = 0
        self._waited = 0.0
        self._lap = 0, 0.0
        self._began = self._ended = Mark(device)

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same batches, and measure how long each is waited for."""
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            with step_phase("waiting for images"):
                batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def count(self, images: int) -> None:
        """Count the images of a step."""
        self._images += images

    def lap(self) -> None:
        """Set aside what was counted since the last call, for pace()."""
        self._lap, self._images, self._waited = (self._images, self._waited), 0, 0.0
        self._began, self._ended = self._ended, Mark(self._device)

    def pace(self) -> Pace:
        """Return the speed of what was set aside, whenever this is called."""
        images, waited = self._lap
        took = max(self._ended.seconds_since(self._began), SHORTEST)
        return Pace(images / took, min(1.0, waited / took))


SHORTEST = 1e-9


class Mark:
    """Marks a time: when a GPU comes to it in its work, or else now."""

    def __init__(self, device: torch.device) -> None:
        """Set the mark."""
        self._time = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()

    def seconds_since(self, earlier: Mark) -> float:
        """Return the seconds from an earlier mark of the same device to this one."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self._event.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1e3


def memory_mb(device: torch.device) -> float:
    """Return the peak of a GPU's memory taken by tensors, or the memory this process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
