"""Compute the same results in other ways, which benchmarks compare ours with.

X any further dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from and_dist.config.schema import DataConfig
from and_dist.distributed.world import World
from and_dist.method.loss import neighbourhood_nll
from and_dist.method.memory_bank import MemoryBank
from and_dist.models.encoders import Encoder

TEMPERATURE = 0.07


Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(features, positive rows, bank) -> loss, which backward() can differentiate."""


def published(
    features_BD: Tensor, positives_BP: Tensor, bank_ND: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the loss in the published code's form.

    All similarities, their softmax, and the logarithm of its sum over the positives.
    """
    p_BN = (features_BD @ bank_ND.T).div_(temperature).softmax(dim=1)
    return -p_BN.gather(1, positives_BP).sum(dim=1).log().mean()


def eager(
    features_BD: Tensor, rows_B: Tensor, bank_ND: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the loss of instances by torch's cross-entropy over all logits."""
    return functional.cross_entropy((features_BD / temperature) @ bank_ND.T, rows_B)


def differentiate(step: Step, features_BD: Tensor, right_BX: Tensor, bank_ND: Tensor) -> Tensor:
    """Return [B, 1 + D]: the loss beside its gradient in the features."""
    features_BD = features_BD.detach().clone().requires_grad_()
    loss = step(features_BD, right_BX, bank_ND)
    loss.backward()
    assert features_BD.grad is not None
    return torch.cat([loss.detach().expand(len(features_BD), 1), features_BD.grad], dim=1)


UPDATE_RATE = 0.5


class DenseBank:
    """Hold a bank in one tensor: loss by cross-entropy over all logits, then Eq. 8 on the batch's
    rows."""

    def __init__(self, rows: int, dim: int, temperature: float, device: torch.device) -> None:
        """Draw [N, D] rows of norm 1."""
        generator = torch.Generator().manual_seed(0)
        bank_ND = functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)
        self.bank_ND = bank_ND.to(device)
        self.temperature = temperature

    def loss(self, features_BD: Tensor, rows_B: Tensor) -> Tensor:
        """Return the loss of the batch as instances."""
        return eager(features_BD, rows_B, self.bank_ND, self.temperature)

    @torch.no_grad()
    def update(self, features_BD: Tensor, rows_B: Tensor) -> None:
        """Mix the features into their rows (Eq. 8)."""
        mixed_BD = (1 - UPDATE_RATE) * self.bank_ND[rows_B] + UPDATE_RATE * features_BD
        self.bank_ND[rows_B] = functional.normalize(mixed_BD, dim=1)


def assert_equal_to_ours(dense: DenseBank, world: World) -> None:
    """Assert that one loss and its gradient are the same by the dense bank and by ours."""
    count, dim = dense.bank_ND.shape
    rows_B = torch.arange(0, count, max(1, count // 32), device=world.device)[:32]
    start_BD = functional.normalize(torch.randn(len(rows_B), dim), dim=1).to(world.device)
    theirs_BD, ours_BD = (start_BD.clone().requires_grad_() for _ in range(2))
    theirs = dense.loss(theirs_BD, rows_B)
    bank = MemoryBank(dense.bank_ND.clone(), 0, count, UPDATE_RATE)
    instances_B1 = torch.full_like(rows_B, -1)[:, None]
    ours = neighbourhood_nll(ours_BD, rows_B, instances_B1, bank, world, dense.temperature)
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_BD.grad, theirs_BD.grad, rtol=1e-2, atol=1e-4)


def train_plainly(
    encoder: Encoder,
    batches: Iterable[tuple[Tensor, Tensor]],
    dense: DenseBank,
    optimiser: torch.optim.SGD,
    steps_per_window: int,
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of each window of steps, and the share of them that waited for images."""
    device = dense.bank_ND.device
    encoder.train()
    started, waited = time.perf_counter(), 0.0
    asked = started
    for step, (images_BCHW, rows_B) in enumerate(batches, 1):
        waited += time.perf_counter() - asked
        images_BCHW = images_BCHW.to(device, non_blocking=True)
        train_once(encoder, images_BCHW, rows_B.to(device), dense, optimiser)
        if step % steps_per_window == 0:
            wait_for(device)
            now = time.perf_counter()
            yield now - started, waited / (now - started)
            started, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()


def train_once(
    encoder: Encoder,
    images_BCHW: Tensor,
    rows_B: Tensor,
    dense: DenseBank,
    optimiser: torch.optim.SGD,
) -> None:
    """Train one step, and update the bank."""
    features_BD = encoder(images_BCHW)
    dense.loss(features_BD, rows_B).backward()
    optimiser.step()
    optimiser.zero_grad()
    dense.update(features_BD.detach(), rows_B)


def train_encoder_alone(encoder: Encoder, images_BCHW: Tensor, optimiser: torch.optim.SGD) -> None:
    """Run forward, backward and a step of the optimiser, with no loss of the method."""
    encoder(images_BCHW)[:, 0].sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    wait_for(images_BCHW.device)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


Source = Path | NDArray[np.uint8]


class TorchvisionImages(Dataset[tuple[torch.Tensor, int]]):
    """Give (image, row), from PIL images or from uint8 tensors that torchvision's libjpeg
    decodes."""

    def __init__(self, sources: Sequence[Source], transform: v2.Compose, on_tensors: bool) -> None:
        """Keep the sources and the transform."""
        self.sources, self.transform, self.on_tensors = sources, transform, on_tensors

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.sources)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        """Return the transformed image of a row, and the row."""
        source = self.sources[row]
        image: Any
        if not isinstance(source, Path):
            image = Image.fromarray(source)
        elif self.on_tensors:
            image = decode_image(read_file(str(source)), ImageReadMode.RGB)
        else:
            image = Image.open(source).convert("RGB")
        return self.transform(image), row


def training_transform(config: DataConfig) -> v2.Compose:
    """Return torchvision's transform for the same training augmentation as ours."""
    gray, jitter = config.grayscale, config.jitter
    return v2.Compose(
        [
            v2.RandomResizedCrop(config.image_size, scale=config.crop_area, antialias=True),
            v2.RandomGrayscale(gray),
            v2.ColorJitter(jitter, jitter, jitter, config.hue),
            *([v2.RandomHorizontalFlip()] if config.flip else []),
            *to_normal(config),
        ]
    )


def test_transform(config: DataConfig) -> v2.Compose:
    """Return torchvision's transform for test images."""
    assert config.test_resize is not None
    return v2.Compose(
        [
            v2.Resize(config.test_resize, antialias=True),
            v2.CenterCrop(config.image_size),
            *to_normal(config),
        ]
    )


def to_normal(config: DataConfig) -> list[v2.Transform]:
    """Return the transforms that turn pixels into normalised float32 tensors."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    return [v2.ToImage(), to_float, v2.Normalize(config.mean, config.std)]


def open_loader(
    images: TorchvisionImages, batch_size: int, workers: int, shuffle: bool
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Return a DataLoader, with pinned memory where there is a GPU to copy to."""
    return DataLoader(
        images,
        batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
