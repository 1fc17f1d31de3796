"""How long each part of a step takes on this machine, by how much there is to do. `and-dist plan`
reckons with it; for benchmarks.hardware, benchmarks.plan and their test.

Parts have names such as encoder/small/64: the curve and the amount, which is images, queries,
parameters, or bytes that a rank receives.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.schema import DataConfig, OptimConfig
from and_dist.data.index import ImageIndex
from and_dist.data.loader import Batch, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import exchange_parts, gather_batch, reduce_sum
from and_dist.distributed.world import World
from and_dist.method.partition import log_partition
from and_dist.models.encoders import ENCODERS, Encoder
from and_dist.models.optim import build_optimiser
from and_dist.planning.costs import COSTS
from and_dist.training.trainer import Trainer
from benchmarks.common.measured_runs import Scene, build_trainer, few_images

DIM = 128
TEMPERATURE = 0.1
STEP_ROWS = 1_000
"""Of the bank where a step's overhead is measured."""
LOADED = 8
"""Batches that the loader is timed on."""
Case = Callable[[], object]
Seconds = dict[str, float]


class RunSpec(NamedTuple):
    """Which points of which curves."""

    images: Mapping[str, Sequence[int]]
    """By encoder."""
    queries: Sequence[int]
    loaded: Sequence[int]
    """Images of a batch."""
    rows: int = 100_000
    dtypes: Sequence[str] = ("float32",)


def merge_least(found: Iterable[Seconds]) -> Seconds:
    """The least seconds of each part."""
    least: Seconds = {}
    for seconds in found:
        for name, value in seconds.items():
            least[name] = min(value, least.get(name, value))
    return least


def slowest(found: Sequence[Seconds]) -> Seconds:
    """Of all ranks' seconds."""
    return {name: max(seconds[name] for seconds in found) for name in found[0]}


def least_seconds(world: World, cases: Mapping[str, Case], repeats: int) -> Seconds:
    """On this rank, of interleaved repeats after one to warm up. All ranks begin together."""
    best = dict.fromkeys(cases, float("inf"))
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            reduce_sum(world, torch.zeros(1, device=world.device))
            started = time.perf_counter()
            case()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def rates_here(world: World, wanted: RunSpec, threads: int, repeats: int) -> Seconds:
    """Of ranks that have nothing to say to each other, but are as busy at the same time."""
    torch.set_num_threads(threads)
    cases = {
        **encoder_cases(wanted.images, world.device),
        **partition_cases(wanted, world.device),
        **optimiser_cases(wanted.images, world.device),
    }
    found = least_seconds(world, cases, repeats)
    for count in wanted.loaded:
        index, pixels = few_images(2_000 * count).index, count * 32**2
        found[f"loader/pixels/{pixels}"] = loader_seconds(world, index, 32, count, threads, repeats)
    return found


def encoder_cases(
    images: Mapping[str, Sequence[int]],
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> dict[str, Case]:
    """Forward and backward, gradients forgotten as the optimiser does."""
    cases: dict[str, Case] = {}
    for name, counts in images.items():
        encoder = ENCODERS[name](DIM).to(device)
        encoder.precision = precision
        for count in counts:
            side = COSTS[name].side
            images_BCHW = torch.rand(count, 3, side, side, device=device)
            slope_BD = torch.rand(count, DIM, device=device)
            cases[f"encoder/{name}/{count}"] = _pass(encoder, images_BCHW, slope_BD)
    return cases


def _pass(encoder: Encoder, images_BCHW: Tensor, slope_BD: Tensor) -> Case:
    def forward_and_backward() -> None:
        encoder(images_BCHW).backward(slope_BD)
        encoder.zero_grad()

    return forward_and_backward


def partition_cases(wanted: RunSpec, device: torch.device) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for dtype in wanted.dtypes:
        rows_SD = unit_rows(wanted.rows, device).to(getattr(torch, dtype))
        for count in wanted.queries:
            case = _stream(unit_rows(count, device), rows_SD)
            cases[f"partition/{dtype}/{count}"] = case
    return cases


def _stream(queries_GD: Tensor, rows_SD: Tensor) -> Case:
    return lambda: log_partition(queries_GD, rows_SD, TEMPERATURE)


def unit_rows(count: int, device: torch.device) -> Tensor:
    return functional.normalize(torch.randn(count, DIM, device=device), dim=1)


def optimiser_cases(encoders: Iterable[str], device: torch.device) -> dict[str, Case]:
    modules = [ENCODERS[name](DIM).to(device) for name in encoders]
    return {
        f"optimiser/{sum(p.numel() for p in module.parameters())}": _update(module)
        for module in modules
    }


def _update(module: nn.Module) -> Case:
    """With the look at the norms that a step takes."""
    optimiser = build_optimiser([module], OptimConfig())
    gradients = [torch.full_like(parameter, 1e-3) for parameter in module.parameters()]
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient

    def update() -> None:
        torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        optimiser.step()

    return update


def loader_seconds(
    world: World, index: ImageIndex, side: int, count: int, threads: int, repeats: int
) -> float:
    """Of one core for a batch of images, taken as fast as they come."""
    torch.set_num_threads(threads)
    order = Order(len(index), count, 0)
    bad, data = BadImages(index, "stop", print), DataConfig(image_size=side)
    batches = TrainingLoader(index, data, order, _alone(world), bad).batches(0)

    def take() -> None:
        for _ in range(LOADED):
            next(batches)

    seconds = least_seconds(world, {"loader": take}, repeats)["loader"]
    batches.close()
    return seconds * threads / LOADED


def _alone(world: World) -> World:
    """The same device, in a world of one."""
    return World(0, 1, 0, 1, world.device, world.group, world.side_group)


def overhead_here(world: World, queries: Sequence[int], threads: int, repeats: int) -> Seconds:
    """A step of the smallest network and bank, less what is named of it; in a world of one."""
    found: Seconds = {}
    with tempfile.TemporaryDirectory() as root:
        for count in queries:
            trainer = build_trainer(
                world, Scene("tiny", STEP_ROWS, count), f"{root}/{count}", threads
            )
            named = {
                **encoder_cases({"tiny": [count]}, world.device),
                **partition_cases(RunSpec({}, [count], [], STEP_ROWS), world.device),
                **optimiser_cases(["tiny"], world.device),
            }
            cases = {"step": _train(trainer), **named}
            seconds = least_seconds(world, cases, repeats)
            rest = seconds.pop("step") - sum(seconds.values())
            found[f"overhead/{count}"] = max(rest, 1e-4)
    return found


def _train(trainer: Trainer) -> Case:
    """The same images again and again, so that none has to be waited for."""
    batches = trainer.components.loader.batches(0)
    batch = next(batches)
    batch = Batch(batch.images_BCHW.clone(), batch.rows_B)
    batches.close()
    return lambda: trainer.train_step(batch)


def links_here(
    world: World, images: Sequence[int], parameters: Sequence[int], threads: int, repeats: int
) -> Seconds:
    """The collectives of a step as it calls them, of so many images a rank; and sums of as many
    numbers as a network has parameters."""
    torch.set_num_threads(threads)
    cases: dict[str, Case] = {}
    others = world.size - 1
    for count in images:
        features_BD, rows_B = torch.rand(count, DIM), torch.arange(count)
        batch = [features_BD, rows_B, rows_B[:, None], rows_B.to(torch.uint8)]
        log_z_G, mean_GD = torch.rand(count * world.size), torch.rand(count * world.size, DIM)
        cases[f"gather/{others * count * (4 * DIM + 17)}"] = _gather(world, batch)
        parts = [log_z_G, mean_GD, log_z_G, mean_GD]
        cases[f"exchange/{others * count * (8 * DIM + 8)}"] = _exchange(world, parts)
    for count in (1, *parameters):
        numbers = torch.zeros(count)
        received = 2 * others / world.size * 4 * count
        cases[f"reduce/{received:g}"] = _reduce(world, numbers)
    return least_seconds(world, cases, repeats)


def _gather(world: World, batch: list[Tensor]) -> Case:
    return lambda: gather_batch(world, batch)


def _exchange(world: World, parts: list[Tensor]) -> Case:
    return lambda: exchange_parts(world, parts)


def _reduce(world: World, numbers: Tensor) -> Case:
    return lambda: reduce_sum(world, numbers)


def curves(seconds: Seconds, per: float = 1.0) -> dict[str, Any]:
    """{"encoder/small/64": 0.1} -> {"encoder/small": {"points": [[64, 0.1]]}}, the plain form of
    and_dist.planning.hardware.Curve; of collectives, of Links."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, value in seconds.items():
        curve, _, amount = name.rpartition("/")
        found.setdefault(curve, []).append((float(amount), float(f"{value / per:.4g}")))
    return {curve: {"points": _rising(points)} for curve, points in found.items()}


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """By amount. More work never takes less time: what was measured so was disturbed."""
    rising: list[tuple[float, float]] = []
    for amount, seconds in sorted(points, reverse=True):
        rising.append((amount, min([seconds, *(later for _, later in rising)])))
    return rising[::-1]


def rates_of(seconds: Seconds, rows: int) -> dict[str, Any]:
    """The plain form of and_dist.planning.hardware.Rates, as far as steps need it."""
    found = curves(seconds)
    per_million = {
        name: value * 1e6 / (rows * DIM)
        for name, value in seconds.items()
        if name.startswith("partition/")
    }
    return {
        "encoders": _below("encoder", found),
        "partition": _below("partition", curves(per_million)),
        "overhead": found["overhead"],
        "optimiser": found["optimiser"],
    }


def _below(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}/"): c for name, c in found.items() if name.startswith(kind)}
