"""Keep the record of a battery: one JSON file with all figures, the hardware and how steps ended.

benchmarks.compare compares two of them, and `and-dist plan --gpu FILE` takes their rates once the
step `hardware` is among them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "torchvision", "triton", "nvidia-dali-cuda130", "faiss-gpu", "numpy")
ASKED = {"gpu": "name", "driver": "driver_version", "gpu_memory": "memory.total"}
"""Names in the record -> the questions to nvidia-smi."""
Record = dict[str, Any]


def describe_machine() -> Record:
    """Return processors, GPU, driver, system and Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "cpu": ", ".join(sorted(models)),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        **_ask_for_gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _ask_for_gpu() -> Record:
    """Return name, driver and memory of the first GPU, None of each where there is none."""
    query = f"--query-gpu={','.join(ASKED.values())}"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        values = [value.strip() for value in said.stdout.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError, IndexError):
        return dict.fromkeys(ASKED)
    return dict(zip(ASKED, values, strict=True))


def versions() -> Record:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def open_record(file: Path, device: str) -> Record:
    """Return the record in a file, or a new one; raise ValueError if it is of another machine."""
    machine = describe_machine()
    if not file.exists():
        return {
            "benchmark": "device",
            "device": device,
            "machine": machine,
            "arguments": [],
            "versions": versions(),
            "rates": {},
            "steps": {},
            "results": [],
            "ratios": {},
            "ratio_repeats": {},
            "facts": {},
        }
    known = read_record(file)
    there = known["machine"]["gpu"], known["device"]
    if there != (machine["gpu"], device):
        raise ValueError(
            f"{file} was measured on {there[0] or there[1]}, and this is "
            f"{machine['gpu'] or device}: choose another --json"
        )
    return known


def read_record(file: Path) -> Record:
    """Return the record in a file; raise ValueError if it holds none."""
    try:
        known = json.loads(file.read_text())
        is_ours = known["benchmark"] == "device" and "gpu" in known["machine"]
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{file} is no record of this battery: name another file")
    return dict(known)


def add_step(record: Record, name: str, how: str, seconds: float, figures: Path) -> None:
    """Put into the record how a step ended and, in place of earlier ones, what it measured."""
    record["steps"][name] = {"how": how, "seconds": round(seconds, 1)}
    if not figures.exists():
        return
    found = json.loads(figures.read_text())
    prefix = f"{name}: "
    for key in ("ratios", "ratio_repeats", "facts"):
        kept = {k: value for k, value in record[key].items() if not k.startswith(prefix)}
        record[key] = kept | {prefix + k: value for k, value in found.get(key, {}).items()}
    others = [result for result in record["results"] if not result["name"].startswith(prefix)]
    mine = [result | {"name": prefix + result["name"]} for result in found["results"]]
    record["results"] = others + mine
    record["rates"] |= found.get("rates", {})
    if "doubt" in found:
        record["doubt"] = found["doubt"]
    if "hardware" in found:
        record["hardware"] = found["hardware"]


def write_record(record: Record, file: Path) -> None:
    """Write the record, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.new")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(file)
