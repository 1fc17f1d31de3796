"""Print the figures of a battery's record as a table for the README."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.device.record import read_record

FLASH = "torch's flash attention"
PARTITION_FORMS = {"attention": FLASH, "cudnn": "cuDNN's", "flash4": "FlashAttention 4"}
"""Forms that the Triton kernel and the choice among all are compared with."""
SIZES = (
    ("256 queries, ImageNet's rows", "256 queries over 1,281,167 rows"),
    ("4,096 queries, ImageNet's rows", "4,096 queries over them"),
    ("256 queries, 1e8 rows", "256 queries over 100 million rows (25.6 GB)"),
    ("4,096 queries, a rank's rows of 64 at 1e9", "4,096 queries over 15.6 million rows"),
)
"""Sizes of benchmarks.device.partition_times, and what the table calls them."""
STEPS = (
    ("AlexNet", "A step of AlexNet, batch 256, that bank"),
    ("ResNet18", "ResNet18"),
    ("small", "`small` at 32 pixels, batch 128"),
    ("AlexNet in float32", "AlexNet in float32 (TF32)"),
)
LOADS = (
    ("JPEGs, mixed decoding", "Images of 224 pixels from JPEGs, decoded by the GPU"),
    ("pixels of 256 in memory", "from 256-pixel pictures in memory"),
)
Results = dict[str, dict[str, Any]]


def as_table(file: Path) -> str:
    """Return a record as Markdown, with a row for each thing that it has measured."""
    record = read_record(file)
    results = {result["name"]: result for result in record["results"]}
    machine = record["machine"]
    packages = {name: version for name, version in record["versions"].items() if version}
    said = (
        f"One {machine['gpu']}, driver {machine['driver']}, {machine['cores']} cores, "
        f"torch {packages.get('torch', '?')}: `{file.name}`."
    )
    rows = [
        *_partition_rows(results),
        *_rows(results, "gpu", STEPS, _images),
        *_rows(results, "loader", LOADS, _images),
        *_discovery_rows(results),
    ]
    lines = [f"| {what} | {figure} | {others} |" for what, figure, others in rows]
    return "\n".join([said, "", "| | ours | instead |", "|---|---|---|", *lines])


def _partition_rows(results: Results) -> list[tuple[str, str, str]]:
    """Return the fastest form of each size beside the others."""
    rows = []
    for name, said in SIZES:
        forms = {
            form: results[key]
            for form in ("triton", *PARTITION_FORMS, "float32", "dense in float16")
            if (key := f"partition_times: {name}, {form}") in results
        }
        own = {form: r for form, r in forms.items() if form in ("triton", *PARTITION_FORMS)}
        if not own:
            continue
        best = min(own, key=lambda form: float(own[form]["median_s"]))
        memory = forms[best].get("peak_mb")
        more = "" if memory is None else f", +{memory:,.0f} MB"
        others = ", ".join(
            f"{PARTITION_FORMS.get(form, form)} {_milliseconds(result)}"
            for form, result in forms.items()
            if form != best
        )
        rows.append((said, f"{_milliseconds(forms[best])} ({best}{more})", others))
    return rows


def _rows(
    results: Results,
    step: str,
    names: tuple[tuple[str, str], ...],
    figure: Callable[[dict[str, Any]], str],
) -> list[tuple[str, str, str]]:
    """Return the figures of some results of a step, as far as there are any."""
    rows = []
    for name, said in names:
        if (key := f"{step}: {name}") in results:
            encoder = results.get(f"{key}, its encoder")
            others = f"its encoder alone {figure(encoder)}" if encoder else ""
            rows.append((said, figure(results[key]), others))
    return rows


def _discovery_rows(results: Results) -> list[tuple[str, str, str]]:
    """Return the time of a discovery over ImageNet's rows."""
    result = results.get("discovery: fused, 1281k")
    whole = "Discovery over 1,281,167 rows, `fused`"
    return [(whole, f"{result['median_s']:.1f} s", "")] if result else []


def _milliseconds(result: dict[str, Any]) -> str:
    """Return the median of a result in milliseconds."""
    return f"{1e3 * result['median_s']:.3g} ms"


def _images(result: dict[str, Any]) -> str:
    """Return the images a second of a result."""
    return f"{result['work'] / result['median_s']:,.0f} images/s"
