"""What a user asks for: a config on so many nodes for so long. Checked before anything is written.

It is written down as JOB/request.json, which the nodes read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from and_dist.config.load import load_config
from and_dist.config.schema import Config
from and_dist.config.validation import Section, parse_duration
from and_dist.runs.folder import check_run_folder
from and_dist.utils import owned_files
from launcher.jobs.cluster_profile import Profile


class Request(Section):
    run: str
    """Folder of the run, absolute."""
    command: tuple[str, ...]
    """What each rank runs after `python -m`."""
    nodes: PositiveInt
    workers: PositiveInt
    """Ranks of a node: one a GPU."""
    gpus: Annotated[int, Field(ge=0)]
    """GPUs of a node."""
    seconds: Annotated[float, Field(ge=60)]
    """Time limit of one start."""
    python: str
    """Of a node's ranks, as a command."""
    host_python: str
    """Of the batch script."""
    code: str
    """Folder of the packages as they were at submission."""
    profile: Profile

    @property
    def world_size(self) -> int:
        return self.nodes * self.workers

    @property
    def folder(self) -> Path:
        return Path(self.run)

    @property
    def minutes(self) -> int:
        return max(1, round(self.seconds / 60))


class Size(Section):
    """How much of a cluster."""

    nodes: PositiveInt = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    workers: PositiveInt | None = None
    time: str = "1d"

    @property
    def ranks_of_a_node(self) -> int:
        return self.workers or self.gpus or 1

    def check(self, profile: Profile) -> None:
        """ValueError for what cannot be."""
        if self.gpus and self.workers and self.workers > self.gpus:
            raise ValueError(
                f"--workers {self.workers} on --gpus {self.gpus}: a rank needs a GPU of its own; "
                "leave --workers out, or --gpus for CPU-only nodes"
            )
        seconds = parse_duration(self.time, "--time")
        if seconds < 60:
            raise ValueError(f"--time {self.time} is less than SLURM's shortest, a minute")
        if seconds < 60 + profile.signal_lead and profile.signal_lead > 60:
            raise ValueError(
                f"--time {self.time} leaves nothing before the signal, which comes "
                f"signal_lead={profile.signal_lead} s before its end; ask for longer or set "
                "signal_lead in the cluster profile"
            )


def load_run(files: Sequence[str | Path], overrides: Sequence[str]) -> Config:
    """The config of one run, which its folder accepts; nothing is written."""
    config = load_config(files, overrides)
    check_run_folder(config)
    check_writable(config.folder)
    return config


def check_writable(folder: Path) -> None:
    """ValueError unless a folder can be made, or written into."""
    try:
        owned_files.check_writable(folder, f"run folder {folder}")
    except ValueError as error:
        raise ValueError(f"{error}; choose another run.root=...") from None
