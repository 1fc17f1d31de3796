"""Measure how long a manifest of 1.3 million files takes to build, to open and to hold.

    python -m benchmarks.prepare [--smoke] [--json FILE] [--folder DIR]

Building, from a folder in the page cache, is compared with listing and opening the files alone.
The files are small JPEGs under ImageNet's names (about 6 GB on disk); a folder that is given by
--folder keeps them for the next run.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from and_dist.data.processes import open_processes
from benchmarks.common.harness import Benchmark, add_arguments
from benchmarks.common.memory import FamilyWatch

ROWS = 1_300_000
CLASSES = 1000
FILES_PER_TASK = 10_000

OPEN = """
import os, sys, time
from pathlib import Path
from and_dist.data.index import open_manifest
def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
before = resident_mb()
started = time.perf_counter()
images = open_manifest(Path(sys.argv[1]))
opened = time.perf_counter() - started
rows = len(images.index)
for row in range(0, rows, 1 + rows // 1000):
    images.index.store.name(row)
print(opened, resident_mb() - before, len(os.listdir("/proc/self/fd")), rows)
"""


def write_files(folder: Path, count: int) -> None:
    """Write `count` JPEGs of 64 sizes into 1,000 class folders; existing files are kept."""
    for name in range(CLASSES):
        (folder / f"n{name:08}").mkdir(parents=True, exist_ok=True)
    starts = range(0, count, FILES_PER_TASK)
    with open_processes() as executor:
        list(executor.map(write_some, [folder] * len(starts), starts, [count] * len(starts)))


def write_some(folder: Path, start: int, count: int) -> None:
    """Write the files of one task."""
    contents = []
    for number in range(64):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (24 + number, 40, 3), np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=10)
        contents.append(file.getvalue())
    for row in range(start, min(start + FILES_PER_TASK, count)):
        name = f"n{row % CLASSES:08}"
        path = folder / name / f"{name}_{row}.JPEG"
        if not path.exists():
            path.write_bytes(contents[row % 64])


def look_at_files(folder: Path) -> int:
    """List all files and read each once, on all cores; return their number. No listing costs
    less."""
    with open_processes() as executor:
        return sum(executor.map(look_at_class, [entry.path for entry in os.scandir(folder)]))


def look_at_class(folder: str) -> int:
    """List the files of one folder and read each once; return their number."""
    count = 0
    for file in os.scandir(folder):
        descriptor = os.open(file.path, os.O_RDONLY)
        os.read(descriptor, 1024)
        os.close(descriptor)
        count += 1
    return count


def build(source: Path, out: Path) -> tuple[float, float]:
    """Run `and-dist prepare` and return its seconds and its peak memory in MB."""
    command = [sys.executable, "-m", "and_dist", "prepare", str(source), "--out", str(out)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watch = FamilyWatch(process.pid)
        assert process.wait() == 0
    return time.perf_counter() - started, watch.finish()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    arguments = parser.parse_args()
    rows = 20_000 if arguments.smoke else ROWS
    benchmark = Benchmark("prepare")
    with tempfile.TemporaryDirectory() as base:
        source = arguments.folder or Path(base, "files")
        write_files(source, rows)
        out = Path(base, "manifest")
        peaks: list[float] = []

        def prepare() -> None:
            peaks.append(build(source, out)[1])

        def look() -> None:
            assert look_at_files(source) == rows

        cases = {"prepare": prepare, "list, open and read only": look}
        benchmark.measure(cases, arguments.repeats, dict.fromkeys(cases, rows), "files")
        benchmark.result("prepare").peak_mb = max(peaks)
        command = [sys.executable, "-c", OPEN, str(out / "train")]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    benchmark.facts = {
        "rows": int(told[3]),
        "opened in s": round(float(told[0]), 4),
        "memory of a rank that holds it, MB": round(float(told[1]), 1),
        "file handles of that rank": int(told[2]),
    }
    least = benchmark.result("list, open and read only").min_s
    benchmark.floor("prepare", "prepare", least, "to list, open and read the files alone")
    benchmark.finish(arguments.json)


if __name__ == "__main__":
    main()
