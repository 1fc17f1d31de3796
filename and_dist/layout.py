"""Layout: which rank of which job this process is, and since when. The only reader of RANK & co.;
no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """A lone process, started without torchrun, is a world of one."""

    is_alone: bool = True
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    """How often this node's torchrun has started its ranks anew after a failure."""


def read_layout(environ: Mapping[str, str] = os.environ) -> Layout:
    """ValueError for a layout that cannot be."""

    def number(name: str, default: int) -> int:
        text = environ.get(name, str(default))
        if not text.isdecimal():
            raise ValueError(f"{name}={text!r} in the environment is not a whole number")
        return int(text)

    size = number("WORLD_SIZE", 1)
    if size < 1:
        raise ValueError("WORLD_SIZE=0 in the environment: a world needs at least one rank")
    layout = Layout(
        "WORLD_SIZE" not in environ,
        number("RANK", 0),
        size,
        number("LOCAL_RANK", 0),
        number("LOCAL_WORLD_SIZE", 1),
        number("TORCHELASTIC_RESTART_COUNT", 0),
    )
    if layout.rank >= size:
        raise ValueError(f"RANK={layout.rank} in the environment is not below WORLD_SIZE={size}")
    return layout


def names_first_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process speaks for all, however broken the rest of the layout is."""
    return environ.get("RANK", "0") == "0"


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """SLURM's job and step, the same for every start of one job; torchrun's --rdzv-id."""
    if "SLURM_JOB_ID" in environ:
        return f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', 'batch')}"
    name = environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else f"torchrun {name}"


def end_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """Where torchrun is it: to it, every end but status 0 is a failure to start anew after."""
    if "TORCHELASTIC_RUN_ID" in environ and read_layout(environ).local_rank == 0:
        os.kill(os.getppid(), signal.SIGTERM)


def process_start(pid: int) -> float | None:
    """Seconds from the machine's start to the process's; None for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = status.rpartition(")")[2].split()
    if after_name[0] == "Z":
        return None
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def seconds_since_start(pid: int) -> float:
    """How long a process has been running; 0 for one that is gone."""
    started = process_start(pid)
    return 0.0 if started is None else time.clock_gettime(time.CLOCK_BOOTTIME) - started


class SharedFailure(RuntimeError):
    """What all ranks raise together, so that the first can speak for all."""
