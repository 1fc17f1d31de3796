"""Run all benchmarks, or the named ones, and fail if one of them does.

    python -m benchmarks.all [--smoke] [--folder artefacts/bench] [NAME ...]

Each runs in a process of its own and writes its figures to FOLDER/NAME.json. If one fails the
others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("partition", "step", "loader", "discovery", "evaluate", "checkpoint", "throughput")
PROMISED = {
    "loader": ("torchvision", "packed"),
    "partition": (
        "published_fp32",
        "published_16bit",
        "eager_fp32",
        "floor_fp32",
        "memory",
        "partial_fc_2ranks",
    ),
    "discovery": ("published_flat", "published_best", "recall_ivf"),
    "step": ("published_alexnet", "published_small"),
}
"""Ratios that a benchmark has to report, by its name."""


def missing_ratios(name: str, file: Path) -> list[str]:
    """Return the promised ratios that a file lacks, and print them."""
    found = json.loads(file.read_text())["ratios"]
    missing = [ratio for ratio in PROMISED.get(name, ()) if ratio not in found]
    if missing:
        print(f"{file} has no ratio {', '.join(missing)}", file=sys.stderr)
    return missing


def main() -> int:
    """Run the benchmarks and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that they run")
    parser.add_argument("--folder", type=Path, default=Path("artefacts/bench"))
    given = parser.parse_args()
    here = Path(__file__).parent
    # A name such as device.gpu lies in a folder.
    unknown = [n for n in given.names if not (here / f"{n.replace('.', '/')}.py").exists()]
    if unknown:
        raise SystemExit(f"there is no benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    failed, started = [], time.monotonic()
    for name in given.names:
        begun = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        file = given.folder / f"{name}.json"
        command += [*["--smoke"] * given.smoke, "--json", str(file)]
        if subprocess.run(command).returncode or missing_ratios(name, file):
            failed.append(name)
        print(f"{name}: {time.monotonic() - begun:.0f} s in all", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(given.names)} benchmarks in {minutes:.1f} minutes; failed: {failed or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
