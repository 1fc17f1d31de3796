"""Measure how long each part of a step takes on this machine, by the amount of work.

`and-dist plan` predicts steps from these times. Parts have names such as encoder/small/64: the
curve and the amount, which is the number of images, queries, parameters, or bytes that a rank
receives.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.optim_schema import OptimConfig
from and_dist.config.schema import DataConfig, EncoderConfig
from and_dist.data.index import ImageIndex
from and_dist.data.loader import Batch, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import exchange_parts, gather_batch, reduce_sum
from and_dist.distributed.world import World
from and_dist.method.partition import log_partition
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.optim import build_optimiser
from and_dist.planning.costs import COSTS
from and_dist.training.trainer import Trainer
from benchmarks.common.measured_runs import Scene, build_trainer, few_images

DIM = 128
TEMPERATURE = 0.1
STEP_ROWS = 1_000
"""Rows of the bank with which the overhead of a step is measured."""
LOADED = 8
"""The number of batches that the loader is timed on."""
Case = Callable[[], object]
Seconds = dict[str, float]


class RunSpec(NamedTuple):
    """Say which points of which curves are measured."""

    images: Mapping[str, Sequence[int]]
    """Numbers of images by encoder."""
    queries: Sequence[int]
    loaded: Sequence[int]
    """Sizes of batches for the loader."""
    rows: int = 100_000
    dtypes: Sequence[str] = ("float32",)


def merge_least(found: Iterable[Seconds]) -> Seconds:
    """Return the least seconds of each part."""
    least: Seconds = {}
    for seconds in found:
        for name, value in seconds.items():
            least[name] = min(value, least.get(name, value))
    return least


def slowest(found: Sequence[Seconds]) -> Seconds:
    """Return for each part the seconds of the slowest rank."""
    return {name: max(seconds[name] for seconds in found) for name in found[0]}


def least_seconds(world: World, cases: Mapping[str, Case], repeats: int) -> Seconds:
    """Return the least seconds of each case on this rank, in interleaved repeats.

    All ranks begin each case together; the first repeat warms up.
    """
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
    """Measure encoders, partition, optimiser and loader on this rank, while other ranks do the
    same.

    The ranks do not communicate, but they share the machine's cores, memory and caches.
    """
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
    """Return cases that run encoders forward and backward, and clear the gradients as the optimiser
    does."""
    cases: dict[str, Case] = {}
    for name, counts in images.items():
        encoder = build_encoder(EncoderConfig(name=name, feature_dim=DIM), seed=0).to(device)
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
    """Return cases that compute the partition of queries, by type and number of queries."""
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
    """Return [count, D] random rows of norm 1."""
    return functional.normalize(torch.randn(count, DIM, device=device), dim=1)


def optimiser_cases(encoders: Iterable[str], device: torch.device) -> dict[str, Case]:
    """Return cases that update the weights of each encoder."""
    configs = [EncoderConfig(name=name, feature_dim=DIM) for name in encoders]
    modules = [build_encoder(config, seed=0).to(device) for config in configs]
    return {
        f"optimiser/{sum(p.numel() for p in module.parameters())}": _update(module)
        for module in modules
    }


def _update(module: nn.Module) -> Case:
    """Return a case that updates weights, and checks the norms of their gradients as a step
    does."""
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
    """Return the seconds of one core that a batch of images takes, loaded as fast as possible."""
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
    """Return the same device in a world of one."""
    return World(0, 1, 0, 1, world.device, world.group, world.side_group)


def overhead_here(world: World, queries: Sequence[int], threads: int, repeats: int) -> Seconds:
    """Return the seconds of a small step beyond those of its encoder, partition and optimiser.

    The step is that of the smallest network and bank, in a world of one.
    """
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
    """Return a case that trains on the same batch again and again, so that no step waits for
    images."""
    batches = trainer.components.loader.batches(0)
    batch = next(batches)
    batch = Batch(batch.images_BCHW.clone(), batch.rows_B)
    batches.close()
    return lambda: trainer.train_step(batch)


def links_here(
    world: World, images: Sequence[int], parameters: Sequence[int], threads: int, repeats: int
) -> Seconds:
    """Return the seconds of a step's collectives, for numbers of images a rank, and of sums of
    tensors.

    The sums are over as many numbers as a network has parameters.
    """
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
    """Return points by curve: {"encoder/small/64": 0.1} -> {"encoder/small": {"points": [[64,
    0.1]]}}.

    This is the plain form of and_dist.planning.hardware.Curve and, for collectives, of Links.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for name, value in seconds.items():
        curve, _, amount = name.rpartition("/")
        found.setdefault(curve, []).append((float(amount), float(f"{value / per:.4g}")))
    return {curve: {"points": _rising(points)} for curve, points in found.items()}


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points by amount, with seconds that never fall.

    More work never takes less time: a longer time at a smaller amount was disturbed.
    """
    rising: list[tuple[float, float]] = []
    for amount, seconds in sorted(points, reverse=True):
        rising.append((amount, min([seconds, *(later for _, later in rising)])))
    return rising[::-1]


def rates_of(seconds: Seconds, rows: int) -> dict[str, Any]:
    """Return the plain form of and_dist.planning.hardware.Rates, as far as steps need it."""
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
