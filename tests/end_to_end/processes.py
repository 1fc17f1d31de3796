"""Runs as users start them, to be disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ranks.pool import free_port

SECONDS = 120
DEBUG = ("train", "--config", "configs/debug.yaml")
ENDLESS = ("curriculum.epochs=1000", "optim.milestones=[500]", "evaluation.baselines=false")


def start(*arguments: object, **environment: object) -> subprocess.Popen[str]:
    """One process of and-dist."""
    return subprocess.Popen(
        [sys.executable, "-m", "and_dist", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in environment.items()}},
        start_new_session=True,
    )


def start_ranks(size: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """As torchrun would, without its agent."""
    port = free_port()
    return [
        start(
            *arguments, RANK=rank, WORLD_SIZE=size, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=size,
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and what it said."""
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def train(*arguments: object) -> str:
    """A run to its end."""
    status, output = finish(start(*DEBUG, *arguments))
    assert status == 0, output
    return output


def wait_until(is_time: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_time():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


def events(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def steps(folder: Path) -> int:
    return max((event.get("step", 0) for event in events(folder)), default=0)


def starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / "environment.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def fill_up(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
