"""Load a cluster profile, slurm/*.yaml: the settings that a cluster needs in every job.

The defaults fit no site in particular.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field

from and_dist.config.bounds import Count
from and_dist.config.limits import MOST_CORES, MOST_GB, MOST_GPUS
from and_dist.config.secret_values import is_secret
from and_dist.config.validation import Section, build
from and_dist.config.yaml_files import read_yaml

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "profiles", PACKAGE.parent / "slurm")
"""Folders of shipped profiles: within the package in a wheel, beside it in a checkout."""
LONGEST_LINE = 100_000
"""The most letters of a line; Linux takes an argument or a variable of 131,072 bytes."""
Cores = Annotated[int, Field(ge=1, le=MOST_CORES)]
Setting = Annotated[int, Field(ge=-(10**12), le=10**12)]
"""A number as the value of an option of sbatch."""
Line = Annotated[str, Field(min_length=1, max_length=LONGEST_LINE, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(max_length=LONGEST_LINE, pattern=r"^[^\x00]*$")]
Option = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Profile(Section):
    """Hold the settings of a cluster; SLURM decides about those that are left out."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    """Features that a node must have, such as a100|h100."""
    exclusive: bool = False
    """True if a job takes whole nodes, shared with no other job."""
    memory_gb: Annotated[int, Field(ge=1, le=MOST_GB)] | None = None
    """Memory of a node, in GB."""
    cpus_per_gpu: Cores | None = None
    cpus_per_node: Cores | None = None
    """CPU cores of a node; overrides cpus_per_gpu, and is the setting for CPU-only nodes."""
    gpus_per_node: Annotated[int, Field(ge=0, le=MOST_GPUS)] | None = None
    """GPUs of a node for jobs without --gpus; 0 for nodes without any. None asks SLURM."""
    gpu: Line | None = None
    """Model of the GPUs, for predictions: a name in and_dist.planning.gpus.GPUS, or a file that
    benchmarks.hardware wrote."""
    signal_lead: Annotated[int, Field(ge=20, le=3600)] = 120
    """Seconds between SLURM's signal and the time limit: enough to save a checkpoint."""
    requeues: bool = True
    """True if this cluster lets a job requeue itself."""
    most_ends_without_progress: Count = 3
    """The number of starts in a row without a new checkpoint after which a job has failed."""
    interface: Line | None = None
    """Network interface between nodes, such as ib0; gloo and NCCL find one themselves if it is left
    out."""
    python: Line | None = None
    """Command that runs Python on a node, such as `apptainer exec --nv img.sif python`; the default
    is the Python that submits."""
    host_python: Line | None = None
    """Command that runs Python on the first node outside any container, where it calls SLURM's
    programs when all ranks have ended; the default is the Python that submits."""
    setup: tuple[Line, ...] = ()
    """Shell lines of the batch script before anything starts, such as `module load cuda`; variables
    that they export reach every node."""
    srun: tuple[Line, ...] = ()
    """Additional arguments of srun, such as --container-image=..."""
    environment: dict[Variable, Text] = Field(default_factory=dict)
    """Environment variables of every process. What looks like a key or a password by its name is
    kept out of the batch script, in a file that only its owner can read."""
    sbatch: dict[Option, Line | Setting | bool] = Field(default_factory=dict)
    """Additional options of sbatch, by their long names, such as mail-type: END."""

    @property
    def secrets(self) -> dict[str, str]:
        """Return the variables that look like keys or passwords."""
        return {name: value for name, value in self.environment.items() if is_secret(name)}

    def without_secrets(self) -> Profile:
        """Return the profile as it may be written down."""
        environment = {n: v for n, v in self.environment.items() if n not in self.secrets}
        return self.model_copy(update={"environment": environment})

    @pydantic.field_validator("python", "host_python")
    @classmethod
    def check_python(cls, command: str | None) -> str | None:
        """Raise ValueError unless the command can be split as a shell splits it."""
        try:
            shlex.split(command or "")
        except ValueError as error:
            raise ValueError(f"{command!r} is no command: {error}") from None
        return command


def load_profile(given: Path) -> Profile:
    """Return the profile in a YAML file, or a shipped one by its bare name, such as example.

    Raise ValueError with the allowed keys and values otherwise.
    """
    path = given
    if not given.suffix and not os.path.exists(given):
        shipped = [place / f"{given.name}.yaml" for place in PLACES]
        found = next((file for file in shipped if os.path.isfile(file)), None)
        if found is None:
            raise ValueError(
                f"there is no cluster profile {given}: it is neither a file nor a shipped one, "
                "which are example and laptop"
            )
        path = found
    return build(Profile, read_yaml(path), f"{path}: ")
