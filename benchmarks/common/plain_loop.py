"""Training as one would write it for one process: torchvision in a DataLoader, the encoder, a dense
softmax over the whole bank. B batch, N all rows, D feature."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.world import World
from and_dist.method.loss import neighbourhood_nll
from and_dist.method.memory_bank import BankShard
from and_dist.models.encoders import Encoder
from benchmarks.common.forms import eager

UPDATE_RATE = 0.5


class DenseBank:
    """Logits of every row, cross-entropy by autograd, then Eq. 8 on the rows of the batch."""

    def __init__(self, rows: int, dim: int, temperature: float, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        bank_ND = functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)
        self.bank_ND = bank_ND.to(device)
        self.temperature = temperature

    def loss(self, features_BD: Tensor, rows_B: Tensor) -> Tensor:
        return eager(features_BD, rows_B, self.bank_ND, self.temperature)

    @torch.no_grad()
    def update(self, features_BD: Tensor, rows_B: Tensor) -> None:
        mixed_BD = (1 - UPDATE_RATE) * self.bank_ND[rows_B] + UPDATE_RATE * features_BD
        self.bank_ND[rows_B] = functional.normalize(mixed_BD, dim=1)


def assert_equal_to_ours(dense: DenseBank, world: World) -> None:
    """One loss and one gradient, both ways."""
    count, dim = dense.bank_ND.shape
    rows_B = torch.arange(0, count, max(1, count // 32), device=world.device)[:32]
    start_BD = functional.normalize(torch.randn(len(rows_B), dim), dim=1).to(world.device)
    theirs_BD, ours_BD = (start_BD.clone().requires_grad_() for _ in range(2))
    theirs = dense.loss(theirs_BD, rows_B)
    bank = BankShard(dense.bank_ND.clone(), 0, count, UPDATE_RATE)
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
    """Seconds of every so many steps, and the share of them that waited for images."""
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
    features_BD = encoder(images_BCHW)
    dense.loss(features_BD, rows_B).backward()
    optimiser.step()
    optimiser.zero_grad()
    dense.update(features_BD.detach(), rows_B)


def train_encoder_alone(encoder: Encoder, images_BCHW: Tensor, optimiser: torch.optim.SGD) -> None:
    """Forward, backward and a step of the optimiser, whatever the loss."""
    encoder(images_BCHW)[:, 0].sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    wait_for(images_BCHW.device)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
