"""Record what every method computes, and compare it with another record: equal to the bit, or not.

    python -m tests.parity FILE                    run everything, write what came of it to FILE
    python -m tests.parity FILE --against BEFORE   the same, then name each difference

A change that is not to change one computed bit is recorded before and after on the same machine.
Everything is started by its command line, so that one copy of this file serves both revisions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
METHODS = ("and", "instance", "random", "supervised", "instance_nce", "deepcluster", "nat")
WORLDS = (1, 2)
SMALL = (
    "run.threads=1",
    "instance_nce.negatives=64",
    "deepcluster.clusters=12",
    "evaluation.linear.epochs=2",
    "evaluation.linear.milestones=[1]",
)
"""Settings that keep each run at seconds."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "bfloat16": (
        "encoder.name=small",
        "encoder.precision=bfloat16",
        "bank.dtype=bfloat16",
        "discovery.search=fused",
        "data.flip=true",
    ),
    "paper": (
        "preset=paper",
        "optim.milestones=[2]",
        "curriculum.start=random",
        "curriculum.neighbours=3",
        "discovery.search=IVF8,Flat",
        "optim.compression=powersgd",
    ),
    "uniform": ("bank.init=uniform", "run.save_minutes=0.002", "evaluation.every=2"),
}
OF_TIME = ("checkpoint", "goodput")
"""The events that depend on when something was saved or started."""
TIMINGS = ("time", "seconds", "images_per_s", "data_wait", "memory_mb", "line", "crc")
Record = dict[str, Any]


def run_command(size: int, *arguments: object) -> str:
    """Run and-dist on so many ranks and return its output; RuntimeError where it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    start = launcher if size > 1 else []
    command = [sys.executable, *start, "-m", "and_dist", *map(str, arguments)]
    ended = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def train(root: Path, size: int, name: str, *options: str) -> Path:
    """Train the debug run with a few options; return its folder."""
    run_command(
        size,
        "train",
        "--config",
        "configs/debug.yaml",
        f"run.root={root}",
        f"name={name}",
        *SMALL,
        *options,
    )
    return root / name


def sums_of_tensors(file: Path) -> dict[str, str]:
    """Return the sum of each tensor's bytes in a safetensors file, its type and shape included."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    sums = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        data = content[8 + length + first : 8 + length + last]
        kind = f"{entry['dtype']} {entry['shape']}"
        sums[name] = f"{kind} {hashlib.sha256(data).hexdigest()[:16]}"
    return sums


def record_checkpoint(checkpoint: Path) -> Record:
    """Return the sums of a checkpoint's tensors, file by file, and its state without timings."""
    state = json.loads((checkpoint / "state.json").read_text())
    for key in ("files", "sha256", "config", "metrics_bytes", "metrics_lines"):
        state.pop(key, None)
    state.get("progress", {}).pop("seconds", None)
    return {
        "state": state,
        **{file.name: sums_of_tensors(file) for file in sorted(checkpoint.glob("*.safetensors"))},
    }


def record_run(run: Path) -> Record:
    """Return a run's metrics without timings and its newest checkpoint."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in lines
        if line["event"] not in OF_TIME
    ]
    latest = (run / "checkpoints" / "latest").read_text().strip()
    config = re.sub(r"^#.*\n", "", (run / "config.yaml").read_text())
    config = config.replace(str(run.parent), "ROOT")
    return {
        "metrics": metrics,
        "checkpoint": record_checkpoint(run / "checkpoints" / latest),
        "config": config,
    }


def record_files(folder: Path) -> Record:
    """Return the sum of every file below a folder; a JSON file stands for what it holds."""
    found: Record = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".json":
            found[name] = without_timings(json.loads(file.read_text()))
        elif file.suffix == ".safetensors":
            found[name] = sums_of_tensors(file)
        elif file.is_file() and file.suffix not in (".md", ".txt"):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return found


def without_timings(value: Any) -> Any:
    """Return JSON content without what differs from one run to the next by itself."""
    moving = (*TIMINGS, "files", "sha256", "weights", "revision", "command", "run", "checkpoint")
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in moving}
    return [without_timings(entry) for entry in value] if isinstance(value, list) else value


def draw_photos(folder: Path) -> Path:
    """Write 60 JPEGs of many sizes, of which one is broken."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(60):
        low = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        image = Image.fromarray(low).resize((90 + 3 * number, 70 + 2 * number))
        image.save(folder / f"{number:03}.jpg", quality=92)
    broken = folder / "017.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    return folder


def record_evaluations(root: Path, run: Path, size: int) -> Record:
    """Return what discover, evaluate, export and embed make of a finished run."""
    found = root / f"found-{run.name}"
    run_command(size, "discover", run, "--out", found / "neighbours", "--round", 2)
    run_command(size, "evaluate", run, "--knn")
    run_command(1, "export", run, "--out", found / "encoder")
    photos = ("embed", run, root / "photos", "--bad-images", "skip")
    run_command(size, *photos, "--out", found / "features.npy")
    paused = HERE / "fixtures" / "and"
    evaluation: Record = {}
    if paused.exists():
        copy = root / f"paused-{run.name}"
        shutil.copytree(paused, copy)
        run_command(size, "evaluate", copy, "--linear")
        evaluation = record_files(copy / "evaluation")
    return {
        "found": record_files(found),
        "knn": record_files(run / "evaluation"),
        "linear resumed": evaluation,
    }


def cases(root: Path) -> dict[str, Callable[[], Record]]:
    """Return every case by name; each runs something and returns what came of it."""
    photos = draw_photos(root / "photos")
    encoded = (
        f"data.train={photos}",
        "data.test=null",
        "data.limit=null",
        "data.limit_test=null",
        "data.bad_images=skip",
        "optim.batch_size=16",
    )

    def run(size: int, name: str, *options: str) -> Record:
        return record_run(train(root, size, name, *options))

    def evaluated(size: int) -> Record:
        return record_evaluations(root, root / f"and-{size}", size)

    found: dict[str, Callable[[], Record]] = {}
    for size in WORLDS:
        for method in METHODS:
            name = f"{method}-{size}"
            found[name] = lambda s=size, n=name, m=method: run(s, n, f"method={m}")
        found[f"evaluations-{size}"] = lambda s=size: evaluated(s)
    for name, options in VARIANTS.items():
        found[name] = lambda n=name, o=options: run(2, n, *o)
    found["photos-2"] = lambda: run(2, "photos-2", *encoded)
    found["cached-1"] = lambda: run(1, "cached-1", *encoded, "data.cache_gb=1")
    return found


def differences(ours: Any, before: Any, at: str = "") -> list[str]:
    """Return each place where two records differ, with both values."""
    if isinstance(ours, dict) and isinstance(before, dict):
        return [
            line
            for key in sorted({*ours, *before})
            for line in differences(ours.get(key), before.get(key), f"{at}/{key}")
        ]
    if isinstance(ours, list) and isinstance(before, list) and len(ours) == len(before):
        pairs = enumerate(zip(ours, before, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{at}/{n}")]
    return [] if ours == before else [f"{at}: {str(before)[:200]} -> {str(ours)[:200]}"]


def main() -> None:
    """Run all cases, or those that are named, and compare them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--against", type=Path, help="a record of another revision")
    parser.add_argument("--only", nargs="+", help="names of cases, such as and-1")
    given = parser.parse_args()
    record: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases(Path(folder)).items():
            if not given.only or name in given.only:
                record[name] = json.loads(json.dumps(case()))
                print(name, flush=True)
    given.file.write_text(json.dumps(record, indent=1))
    if given.against:
        before = json.loads(given.against.read_text())
        wanted = {name: before.get(name) for name in record} if given.only else before
        found = differences(record, wanted)
        print("\n".join(found[:40]) or f"{len(record)} cases are equal to the bit")
        sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
