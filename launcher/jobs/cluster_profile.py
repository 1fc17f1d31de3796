"""A cluster profile, slurm/*.yaml: what this cluster wants of every job. No site's defaults."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field, PositiveInt

from and_dist.config.validation import Section, build
from and_dist.config.yaml_files import read_yaml

Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n]+$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Profile(Section):
    """What is left out is left to SLURM."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    """Such as a100|h100."""
    exclusive: bool = False
    """Whole nodes, shared with nobody."""
    memory_gb: PositiveInt | None = None
    """Of a node."""
    cpus_per_gpu: PositiveInt | None = None
    cpus_per_node: PositiveInt | None = None
    """Wins over cpus_per_gpu, and is what CPU-only nodes take."""
    gpu: Line | None = None
    """Which GPUs these are, for predictions: a name of and_dist.planning.hardware.GPUS, or a file
    of benchmarks.hardware."""
    signal_lead: Annotated[int, Field(ge=20, le=3600)] = 120
    """Seconds between SLURM's signal and the time limit: enough to save a checkpoint."""
    requeues: bool = True
    """Whether this cluster lets a job requeue itself."""
    most_ends_without_progress: PositiveInt = 3
    """A job that ends so often in a row without a new checkpoint is given up."""
    interface: Line | None = None
    """Network interface between nodes, such as ib0; none lets gloo and NCCL find one."""
    python: Line | None = None
    """Command that is Python on a node, such as `apptainer exec --nv img.sif python`; none takes
    the one that submits."""
    host_python: Line | None = None
    """Command that is Python on the first node outside any container, and speaks to SLURM when all
    ranks have ended; none takes the one that submits."""
    setup: tuple[Line, ...] = ()
    """Shell lines before anything starts, such as `module load cuda`; what they export reaches
    every node."""
    srun: tuple[Line, ...] = ()
    """More arguments of srun, such as --container-image=..."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Variables of every process."""
    sbatch: dict[Line, str | int | bool] = Field(default_factory=dict)
    """More options of sbatch, by their long names: mail-type: END."""

    @pydantic.field_validator("python", "host_python")
    @classmethod
    def check_python(cls, command: str | None) -> str | None:
        try:
            shlex.split(command or "")
        except ValueError as error:
            raise ValueError(f"{command!r} is no command: {error}") from None
        return command


def load_profile(path: Path) -> Profile:
    """ValueError says what would have been right."""
    return build(Profile, read_yaml(path), f"{path}: ")
