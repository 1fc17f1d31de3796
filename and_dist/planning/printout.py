"""Print a plan as text for people, or as JSON for programs. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from and_dist.planning.advice import Advice, advise
from and_dist.planning.memory import (
    Place,
    columns_of,
    footprint_of,
    refused_discovery,
    smallest_budget_mb,
    table_bytes,
)
from and_dist.planning.plan import Plan, fewest_nodes, most_rows
from and_dist.planning.timing import BY_THE_BANK
from and_dist.planning.units import in_count, in_time
from and_dist.utils.formatting import in_bytes, three_digits

PARTS_OF_A_STEP = {
    "encoder": "encoder, forward and backward",
    "partition": "partition over the shard",
    "gather": "gather of the batch",
    "exchange": "exchange of partitions",
    "gradients": "sum of gradients",
    "loss": "sum of the loss",
    "optimiser": "optimiser",
    "rest": "launches and the rest",
    "loader": "loader, beside all these",
    "waits": "waiting for the other ranks",
}
"""Words for the parts of a step."""


def show(plan: Plan, console: Console) -> None:
    """Print a plan to a console."""
    console.print(Group(*_blocks(plan)))


def _blocks(plan: Plan) -> Iterator[RenderableType]:
    """Yield the tables and lines of a plan."""
    yield _headline(plan)
    yield ""
    yield _memory_table(plan, "device")
    if plan.footprint.has_host:
        yield ""
        yield _memory_table(plan, "host")
    yield ""
    yield _step_table(plan)
    yield ""
    yield from _run_lines(plan)
    yield ""
    yield from capacity_lines(plan)
    found = advise(plan)
    if found:
        yield ""
        yield _advice_table(found)


def _headline(plan: Plan) -> str:
    """Return the first line: the job, its size and its hardware."""
    job = plan.job
    word = "GPU" if job.on_gpu else "CPU rank"
    name = job.hardware.name if job.hardware else "unknown hardware"
    return (
        f"{job.config.name}: {job.num_rows:,} rows, {job.config.encoder.name}, {job.size.nodes} "
        f"node(s) of {job.size.ranks_of_a_node} {word}(s), {name}; batch "
        f"{job.config.optim.batch_size}, {job.local_batch} a rank"
    )


def _memory_table(plan: Plan, place: Place) -> Table:
    """Return a table of the phase that holds most, with the totals of the other phases."""
    footprint, fullest = plan.footprint, plan.footprint.fullest(place)
    where = {"device": "GPU memory", "host": "host memory"}[place]
    title = f"{where if footprint.has_host else 'memory'} of a rank, fullest in {fullest.name}"
    table = _table(title, "", "", "")
    total = footprint.total(fullest, place)
    for part in sorted(footprint.parts(fullest, place), key=lambda part: -part.bytes):
        if part.bytes:
            table.add_row(part.name, in_bytes(part.bytes), f"{part.bytes / total:.0%}")
    table.add_section()
    table.add_row(f"in all, in {fullest.name}", in_bytes(total), "")
    for phase in footprint.phases:
        if phase is not fullest:
            table.add_row(f"in {phase.name}", in_bytes(footprint.total(phase, place)), "")
    if plan.job.size.ranks_of_a_node > 1 and place == "host":
        ranks = plan.job.size.ranks_of_a_node
        table.add_row(f"the {ranks} ranks of a node", in_bytes(ranks * total), "")
    if place == "device" and plan.device_bytes is not None:
        share = f"{total / plan.device_bytes:.0%} full"
        table.add_row("a rank may fill", in_bytes(plan.device_bytes), share)
    return table


def _step_table(plan: Plan) -> Table:
    """Return a table of the bytes that a rank receives in a step, and of its times."""
    wire = asdict(plan.traffic)
    table = _table("a step of a rank", "", "on the wire", "time", "")
    seconds: dict[str, float] = {}
    if plan.pace is not None:
        seconds = plan.pace.parts | {"loader": plan.pace.loader, "waits": plan.pace.waits}
    for name, words in PARTS_OF_A_STEP.items():
        if not wire.get(name) and not seconds.get(name):
            continue
        took = in_time(seconds[name]) if name in seconds else ""
        share = f"{seconds[name] / plan.pace.step:.0%}" if plan.pace and name in seconds else ""
        table.add_row(words, in_bytes(wire[name]) if wire.get(name) else "", took, share)
    table.add_section()
    step = in_time(plan.pace.step) if plan.pace else ""
    table.add_row("in all", in_bytes(plan.traffic.total), step, "")
    return table


def _run_lines(plan: Plan) -> Iterator[str]:
    """Yield lines about checkpoints, speed and the whole run."""
    yield f"a checkpoint takes {in_bytes(plan.checkpoint_bytes)} on the disk"
    if plan.epoch_seconds is None or plan.run_seconds is None or plan.images_per_s is None:
        yield "no time is predicted: nobody says how fast the hardware is"
        return
    job, word = plan.job, "GPU" if plan.job.on_gpu else "rank"
    yield (
        f"{plan.images_per_s:,.0f} images/s, {plan.images_per_s / job.world:,.0f} a {word}: "
        f"{in_time(plan.epoch_seconds)} an epoch of {job.steps_per_epoch:,} steps"
    )
    discovery = f", {in_time(plan.pace.discovery)} the last discovery" if plan.pace else ""
    yield (
        f"{in_time(plan.run_seconds)} in all: {job.rounds} round(s), {job.config.num_epochs} "
        f"epochs{discovery}; {three_digits(plan.device_hours or 0)} {word}-hours"
    )
    if plan.pace is not None:
        yield f"bound by: {PARTS_OF_A_STEP[plan.pace.bound_by]}"
    yield f"figures: {plan.source}"
    yield from (f"  {origin}: {what}" for origin, what in plan.origins.items())
    yield from _caveats(plan)


def _caveats(plan: Plan) -> Iterator[str]:
    """Yield one line for each cost that the figures leave out."""
    job = plan.job
    if job.config.method not in (*BY_THE_BANK, "random"):
        yield (
            f"method={job.config.method}: its steps are predicted without what is its own (heads, "
            "targets, clusters, negatives)"
        )
    if job.size.nodes > 1 and job.hardware is not None and job.hardware.network is None:
        yield "links between nodes are taken to be as fast as those measured within one"


def capacity_lines(plan: Plan) -> Iterator[str]:
    """Yield lines on how many rows fit, which part stops more, and which table is not sharded."""
    most, job = most_rows(plan), plan.job
    if refused_discovery(job):
        yield (
            f"training refuses discovery.memory_mb={job.config.discovery.memory_mb:g} for so many; "
            f"what follows is with {smallest_budget_mb(job)}"
        )
    if most is not None and plan.device_bytes is not None:
        yield (
            f"{'fits' if plan.fits else 'does not fit'}: {in_count(most)} rows are the most on "
            f"{job.world:,} rank(s) of {in_bytes(plan.device_bytes)}{_with_budget(plan, most)}; "
            f"then {stops_first(plan, most)} is what stops it"
        )
        nodes = fewest_nodes(plan)
        needed = f"{nodes:,} node(s), {nodes * job.size.ranks_of_a_node:,} rank(s)" if nodes else ""
        yield (
            f"the fewest on which {in_count(job.num_rows)} rows fit: "
            f"{needed or 'on no number of them, since what every rank holds alone is too much'}"
        )
    yield (
        f"the table ({columns_of(job)}) lies whole on every rank, {in_bytes(table_bytes(job))}; of "
        "all that grows with the rows only the bank is sharded"
    )


def _with_budget(plan: Plan, rows: int) -> str:
    """Return the memory that discovery needs for so many rows, in words; empty if it has it."""
    job = plan.job.of(num_rows=max(rows, plan.job.world))
    needed = smallest_budget_mb(job) if refused_discovery(job) else 0
    return f" (with discovery.memory_mb={needed})" if needed else ""


def stops_first(plan: Plan, rows: int) -> str:
    """Return the largest part that grows with the rows, when there are as many as fit."""
    job = plan.job.of(num_rows=max(rows, plan.job.world))
    footprint = footprint_of(job)
    fewer = footprint_of(job.of(num_rows=max(job.world, job.num_rows // 2)))
    parts = footprint.parts(footprint.fullest())
    growing = [part for part in parts if part.bytes > fewer.bytes_of(part.name)]
    if not growing:
        return max(parts, key=lambda part: part.bytes).name
    return max(growing, key=lambda part: part.bytes).name


def _advice_table(found: list[Advice]) -> Table:
    """Return a table of advice."""
    table = Table(title="what to change", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for advice in found:
        table.add_row(advice.change, advice.effect)
    return table


def _table(title: str, *columns: str) -> Table:
    """Return an empty table with the first column aligned to the left."""
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=True)
    return table


def as_plain(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data: bytes, seconds and names; None where a value is unknown."""
    job, pace = plan.job, plan.pace
    footprint = plan.footprint
    most, nodes = most_rows(plan), fewest_nodes(plan)
    return {
        "rows": job.num_rows,
        "nodes": job.size.nodes,
        "ranks": job.world,
        "hardware": job.hardware.name if job.hardware else None,
        "memory": {
            place: _memory_plain(plan, place)
            for place in (("device", "host") if footprint.has_host else ("device",))
        },
        "device_bytes": plan.device_bytes,
        "fits": plan.fits,
        "refused": refused_discovery(job),
        "wire_bytes": asdict(plan.traffic) | {"total": plan.traffic.total},
        "step_seconds": None if pace is None else pace.parts | {"in all": pace.step},
        "loader_seconds": pace.loader if pace else None,
        "waits_seconds": pace.waits if pace else None,
        "bound_by": pace.bound_by if pace else None,
        "images_per_s": plan.images_per_s,
        "epoch_seconds": plan.epoch_seconds,
        "discovery_seconds": pace.discovery if pace else None,
        "run_seconds": plan.run_seconds,
        "device_hours": plan.device_hours,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "most_rows": most,
        "fewest_ranks": nodes * job.size.ranks_of_a_node if nodes else None,
        "stops_first": stops_first(plan, most) if most is not None else None,
        "table_bytes_of_every_rank": table_bytes(job),
        "source": plan.source,
        "origins": plan.origins,
        "advice": [asdict(advice) for advice in advise(plan)],
    }


def _memory_plain(plan: Plan, place: Place) -> dict[str, Any]:
    """Return the parts of one memory as plain data."""
    footprint = plan.footprint
    fullest = footprint.fullest(place)
    return {
        "parts": {part.name: part.bytes for part in footprint.parts(fullest, place)},
        "fullest": fullest.name,
        "phases": {phase.name: footprint.total(phase, place) for phase in footprint.phases},
    }


def in_short(plan: Plan) -> Iterator[str]:
    """Yield a few lines about a plan, for somebody who submits a job."""
    footprint = plan.footprint
    largest = sorted(footprint.parts(footprint.fullest()), key=lambda part: -part.bytes)[:3]
    parts = ", ".join(f"{part.name} {in_bytes(part.bytes)}" for part in largest)
    room = "" if plan.fits else f", more than the {in_bytes(plan.device_bytes or 0)} it may fill"
    yield f"a rank holds {in_bytes(footprint.peak())} at most{room}: {parts}"
    if plan.epoch_seconds is None or plan.run_seconds is None:
        yield "no epoch time predicted: no `gpu` in the cluster profile says how fast a rank is"
        return
    bound = f", bound by {PARTS_OF_A_STEP[plan.pace.bound_by]}" if plan.pace else ""
    yield (
        f"predicted: {in_time(plan.epoch_seconds)} an epoch, {in_time(plan.run_seconds)} in all"
        f"{bound}, from {plan.source}; and-dist plan says more"
    )
