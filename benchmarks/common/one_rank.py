"""Run a step of training on one rank without loader and optimiser, and its published form.

B local batch, G global batch, S rows of this shard, N all rows, P the row and its neighbours,
D feature, X any further dimensions.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.schema import EncoderConfig
from and_dist.data.order import Order
from and_dist.distributed.ddp import replicate
from and_dist.distributed.world import World
from and_dist.method.loss import gather_global_batch, sharded_nll
from and_dist.method.memory_bank import MemoryBank, draw_uniform_rows, shard_range
from and_dist.models.encoders import build_encoder
from benchmarks.common.memory import extra_peak_mb
from benchmarks.common.peers import TEMPERATURE, differentiate, published
from benchmarks.common.watch import Watch

DIM, UPDATE_RATE = 128, 0.5
SIDE = 32
"""Height and width, in pixels, of the images that an encoder is shown."""
ROWS_DRAWN = 1 << 16


class Rank:
    """Hold a batch, its neighbours and a shard of the bank, and run steps of training with them."""

    def __init__(
        self,
        world: World,
        bank: MemoryBank,
        rows_B: Tensor,
        neighbours_B: Tensor,
        inputs_BX: Tensor,
        encoder: str = "",
    ) -> None:
        """Build the neighbour table, and the encoder if one is named."""
        self.world = world
        self.bank = bank
        self.rows_B = rows_B
        self.inputs_BX = inputs_BX
        # torch.empty touches no pages: only the entries of this batch take memory, so any N fits.
        self.neighbours_NK = torch.empty(bank.num_rows, 1, dtype=torch.int64)
        self.neighbours_NK[rows_B, 0] = neighbours_B
        self.network: nn.Module = nn.Identity()
        if encoder:
            config = EncoderConfig(name=encoder, feature_dim=bank.features_SD.shape[1])
            self.network = replicate(build_encoder(config, 0), world, inputs_BX[:2])
        else:
            inputs_BX.requires_grad_()

    def step(self) -> Tensor:
        """Run the trainer's step without loading images and updating weights; gradients are
        kept."""
        self.inputs_BX.grad = None
        self.network.zero_grad()
        features_BD = self.network(self.inputs_BX)
        neighbours_BK = self.neighbours_NK[self.rows_B]
        batch = gather_global_batch(features_BD, self.rows_B, neighbours_BK, self.world)
        loss = sharded_nll(features_BD, batch, self.bank, self.world, TEMPERATURE)
        loss.backward()
        self.bank.update(batch.rows_G, batch.features_GD)
        return loss.detach()


def build_shard(world: World, num_rows: int, dtype: torch.dtype = torch.float32) -> MemoryBank:
    """Return this rank's shard of a bank that repeats the same 65,536 rows."""
    start, stop = shard_range(num_rows, world.rank, world.size)
    drawn_XD = draw_uniform_rows(0, min(ROWS_DRAWN, num_rows), DIM, seed=0).to(dtype)
    features_SD = torch.empty(stop - start, DIM, dtype=dtype)
    for at in range(0, stop - start, ROWS_DRAWN):
        rows_XD = features_SD[at : at + ROWS_DRAWN]
        places_X = torch.arange(start + at, start + at + len(rows_XD)) % len(drawn_XD)
        rows_XD.copy_(drawn_XD[places_X])
    return MemoryBank(features_SD, start, num_rows, UPDATE_RATE)


def unit_features(count: int) -> Tensor:
    """Return [count, D] rows of norm 1, the same in every run."""
    random = torch.Generator().manual_seed(2)
    return functional.normalize(torch.randn(count, DIM, generator=random), dim=1)


def rank_of_world(
    world: World,
    num_rows: int,
    global_batch: int,
    encoder: str = "",
    bank: MemoryBank | None = None,
) -> Rank:
    """Return this rank's part of a batch and a bank that are the same at any world size."""
    bank = bank or build_shard(world, num_rows)
    order = Order(num_rows, global_batch, seed=0)
    rows_B = torch.from_numpy(order.local_rows(0, 0, world.rank, world.size).rows_B)
    mine = slice(*shard_range(global_batch, world.rank, world.size))
    inputs_BX = unit_features(global_batch)[mine].clone()
    if encoder:
        inputs_BX = torch.rand(len(rows_B), 3, SIDE, SIDE)
    return Rank(world, bank, rows_B, (rows_B + 1) % num_rows, inputs_BX, encoder)


def expected_step(world: World, num_rows: int, global_batch: int) -> Tensor:
    """Return loss and gradient, [G, 1 + D], of the same step by the published form, in a world of
    one."""
    inputs = published_inputs(rank_of_world(world, num_rows, global_batch))
    return differentiate(published, *inputs)


def published_inputs(rank: Rank) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, positives and bank, as the published form takes them."""
    rows_B = rank.rows_B
    positives_BP = torch.stack([rows_B, rank.neighbours_NK[rows_B, 0]], dim=1)
    return rank.inputs_BX, positives_BP, rank.bank.features_SD


def result_of_step(rank: Rank) -> Tensor:
    """Return loss and gradient, [B, 1 + D], of a rank without an encoder, as differentiate()
    does."""
    loss = rank.step()
    assert rank.inputs_BX.grad is not None
    mean_BD = rank.inputs_BX.grad / rank.world.size  # DDP averages
    return torch.cat([loss.expand(len(mean_BD), 1), mean_BD], dim=1)


def assert_same(ours_GX: Tensor, theirs_GX: Tensor) -> None:
    """Assert that losses and gradients agree."""
    torch.testing.assert_close(ours_GX, theirs_GX, rtol=1e-3, atol=1e-5)


def measure_rank(
    world: World, num_rows: int, global_batch: int, encoder: str, repeats: int
) -> dict[str, Any]:
    """Return the figures of one rank: its first step's result, then seconds, memory and traffic."""
    rank = rank_of_world(world, num_rows, global_batch, encoder)
    found: dict[str, Any] = {"result_BX": None if encoder else result_of_step(rank)}
    with Watch(world.size) as watch:
        rank.step()
    found |= {"received": sum(watch.received.values()), "peak_mb": extra_peak_mb(rank.step)}
    seconds: list[float] = []
    before = bytes_over_loopback()
    for _ in range(repeats):
        dist.barrier(group=world.group)
        started = time.perf_counter()
        rank.step()
        seconds.append(time.perf_counter() - started)
    found["seconds"] = seconds
    found["loopback"] = (bytes_over_loopback() - before) / repeats / world.size
    return found


def bytes_expected(size: int, global_batch: int) -> int:
    """Return the bytes that a rank receives from the others in a step without an encoder.

    They are the feature, row, neighbour and stop request of every query; two partitions of the
    rank's own queries from each other rank; and the sum of the losses.
    """
    gathered = 4 * DIM + 8 + 8 + 1
    partitions = 2 * 4 * (DIM + 1)
    share = (size - 1) / size
    return sum(
        round(share * part) for part in (global_batch * gathered, global_batch * partitions, 8)
    )


def bytes_over_loopback() -> int:
    """Return the bytes that processes of this machine have sent over loopback, the ranks' among
    them."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))
