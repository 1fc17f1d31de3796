"""Advise changes to a job, by planning it again with each change. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from and_dist.config.schema import Config
from and_dist.planning.memory import (
    columns_of,
    refused_discovery,
    smallest_budget_mb,
    table_bytes,
)
from and_dist.planning.plan import Plan
from and_dist.planning.timing import pace_of
from and_dist.planning.units import in_time
from and_dist.planning.workload import Job
from and_dist.utils.formatting import in_bytes

OTHER_SCHEDULE = "a quarter of the steps, which wants another learning rate"
"""The remark on a batch four times as large."""
SMALL_BATCH, BUSY_BATCH = 16, 32
"""Images of a step on a rank that shares it with others: fewer than the first are too few, and the
second keep it busy, as a rule of thumb."""
BUSIER = 0.7
"""Where speeds are known, fewer images are too few only if BUSY_BATCH of them bring the time of an
epoch below this share."""
WORTH = 0.97
"""A change is advised only if it brings a figure below this share of its value before."""


@dataclass(frozen=True)
class Advice:
    """Hold a change to a job, and its effect in words."""

    change: str
    effect: str


def advise(plan: Plan) -> list[Advice]:
    """Return advice: first on parts that stop the job, then on parts that slow it down."""
    found = [
        *_if_it_stops(plan),
        *_about_memory(plan),
        *_about_time(plan),
        *_about_small_batch(plan),
    ]
    effects: dict[str, list[str]] = {}
    for advice in found:
        effects.setdefault(advice.change, []).append(advice.effect)
    return [Advice(change, "; ".join(of)) for change, of in effects.items()]


def about_small_batch(job: Job) -> Advice | None:
    """Return advice if so many ranks share a step that each has too few images to be busy."""
    world, optim = job.world, job.config.optim
    if world == 1 or job.local_batch >= SMALL_BATCH:
        return None
    batch, ranks = BUSY_BATCH * world, max(1, optim.batch_size // BUSY_BATCH)
    now, then = pace_of(job), pace_of(_with(job, optim={"batch_size": batch}))
    if now is not None and then is not None and then.epoch > BUSIER * now.epoch:
        return None
    ways = [f"{ranks} rank{'s' if ranks > 1 else ''}"]
    if batch <= job.num_rows:
        rate = optim.lr * batch / optim.batch_size
        by_rule = f" optim.lr={rate:g} (lr by the linear rule)" if optim.lr_per_256 is None else ""
        ways.insert(0, f"optim.batch_size={batch}{by_rule}")
    return Advice(
        f"{' or '.join(ways)}, for {BUSY_BATCH} images each",
        f"optim.batch_size={optim.batch_size} has {job.local_batch} images a step for each of "
        f"{world} ranks, too few to keep them busy",
    )


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """Return the config with other values in some sections."""
    update = {
        name: getattr(config, name).model_copy(update=values) for name, values in sections.items()
    }
    return config.model_copy(update=update)


def _if_it_stops(plan: Plan) -> Iterator[Advice]:
    """Yield advice if training would refuse the job."""
    if refused_discovery(plan.job):
        needed = smallest_budget_mb(plan.job)
        yield Advice(
            f"discovery.memory_mb={needed}",
            f"the sums of a shard's {plan.job.shard_rows:,} rows fit; without it training refuses",
        )


def _about_memory(plan: Plan) -> Iterator[Advice]:
    """Yield advice on memory, if a rank would fill at least half of its limit."""
    job = plan.job
    if plan.device_bytes is None or plan.footprint.peak() < 0.5 * plan.device_bytes:
        return
    if job.config.bank.dtype == "float32":
        narrow = plan.of(_with(job, bank={"dtype": "bfloat16"}))
        if narrow.footprint.peak() < WORTH * plan.footprint.peak():
            yield Advice("bank.dtype=bfloat16", _memory_effect(plan, narrow))
    more = plan.of(job.of(nodes=2 * job.size.nodes)) if _can_grow(job) else None
    if more is not None and more.footprint.peak() < WORTH * plan.footprint.peak():
        yield Advice(f"--nodes {2 * job.size.nodes}", _memory_effect(plan, more))
    if table_bytes(job) > 0.5 * plan.footprint.bytes_of("shard of the bank"):
        twice = ", twice during discovery" if job.discovers else ""
        yield Advice(
            "fewer rows, or devices with more memory",
            f"{in_bytes(table_bytes(job))} of {columns_of(job)} lie on every rank{twice}, however "
            "many there are",
        )


def _about_time(plan: Plan) -> Iterator[Advice]:
    """Yield advice on the part that takes most time, on searches and on small batches."""
    if plan.pace is None:
        return
    yield from _about_discovery(plan)
    bound = plan.pace.bound_by
    if bound == "partition":
        yield from _about_partition(plan)
    if bound == "loader" and plan.job.images == "encoded":
        yield from _about_images(plan)
    if bound == "gradients" and plan.job.config.optim.compression == "none":
        narrow = {"compression": "bfloat16"}
        yield from _faster(plan, "optim.compression=bfloat16", optim=narrow)
    small_parts = plan.pace.step - max(plan.pace.parts["encoder"], plan.pace.parts["partition"])
    if small_parts > 0.3 * plan.pace.step and plan.pace.step > plan.pace.loader:
        batch = 4 * plan.job.config.optim.batch_size
        if batch < plan.job.num_rows and about_small_batch(plan.job) is None:
            for advice in _faster(plan, f"optim.batch_size={batch}", optim={"batch_size": batch}):
                yield replace(advice, effect=f"{advice.effect}; {OTHER_SCHEDULE}")


def _about_small_batch(plan: Plan) -> Iterator[Advice]:
    """Yield what about_small_batch returns, with what the larger batch brings where it is known."""
    advice, batch = about_small_batch(plan.job), BUSY_BATCH * plan.job.world
    if advice is None:
        return
    times = [] if batch > plan.job.num_rows else _faster(plan, "", optim={"batch_size": batch})
    yield replace(advice, effect="; ".join([advice.effect, *(faster.effect for faster in times)]))


def _about_discovery(plan: Plan) -> Iterator[Advice]:
    """Yield faster searches, if exact ones take more than 5 % of the run."""
    assert plan.pace is not None
    search = plan.job.config.discovery.search
    rounds = plan.job.rounds - 1
    if search == "Flat" and rounds * plan.pace.discovery > 0.05 * plan.pace.run:
        cells = cells_of(plan.job.shard_rows)
        name = f"discovery.search=IVF{cells},Flat"
        yield from _faster(plan, name, discovery={"search": f"IVF{cells},Flat"})
        yield from _faster(plan, "discovery.search=fused", discovery={"search": "fused"})


def cells_of(rows: int) -> int:
    """Return the cells of an inverted file: four square roots of the rows, as a power of two."""
    return int(2 ** round((rows * 16).bit_length() / 2)) if rows > 1 else 1


def _about_partition(plan: Plan) -> Iterator[Advice]:
    """Yield ways to a faster partition."""
    if plan.job.config.bank.dtype == "float32":
        yield from _faster(plan, "bank.dtype=bfloat16", bank={"dtype": "bfloat16"})
    if _can_grow(plan.job):
        nodes = 2 * plan.job.size.nodes
        after = plan.of(plan.job.of(nodes=nodes))
        yield from _if_faster(plan, f"--nodes {nodes}", after)


def _about_images(plan: Plan) -> Iterator[Advice]:
    """Yield that images be packed as pixels, which need no decoding."""
    assert plan.pace is not None
    side = 256 * plan.job.config.data.image_size // 224
    after = replace(plan, pace=pace_of(replace(plan.job, images="pixels")))
    how = f"and-dist prepare --raw {side}, and data.train=OUT/train"
    yield from _if_faster(plan, how, after)


def _faster(plan: Plan, change: str, **sections: dict[str, Any]) -> Iterator[Advice]:
    """Yield a change of the config if it makes the run faster."""
    yield from _if_faster(plan, change, plan.of(_with(plan.job, **sections)))


def _if_faster(before: Plan, change: str, after: Plan) -> Iterator[Advice]:
    """Yield a change if the plan after it is faster than before, and fits if that before did."""
    was, now = before.pace, after.pace
    if was is None or now is None or now.run >= WORTH * was.run:
        return
    if before.fits and not after.fits:
        return
    yield Advice(
        change,
        f"{in_time(now.run)} in all in place of {in_time(was.run)}: an epoch "
        f"{in_time(now.epoch)} ({in_time(was.epoch)}), a discovery {in_time(now.discovery)} "
        f"({in_time(was.discovery)})",
    )


def _memory_effect(before: Plan, after: Plan) -> str:
    """Return the effect of a change on the memory of a rank, in words."""
    now, was = after.footprint.peak(), before.footprint.peak()
    verdict = "" if before.fits or not after.fits else ", which fits"
    return f"{in_bytes(now)} a rank in place of {in_bytes(was)}{verdict}"


def _with(job: Job, **sections: dict[str, Any]) -> Job:
    """Return the job with other values in some sections of its config."""
    return replace(job, config=changed(job.config, **sections))


def _can_grow(job: Job) -> bool:
    """Return whether there are rows enough for twice the ranks."""
    return 2 * job.world <= job.num_rows
