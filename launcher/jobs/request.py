"""Check a user's request before anything is written: a config, a number of nodes and a time.

The request is written to JOB/request.json, which the nodes read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from and_dist.config.limits import MOST_GPUS, MOST_NODES, MOST_RANKS_OF_A_NODE, MOST_SECONDS
from and_dist.config.load import load_config, parse_overrides
from and_dist.config.schema import Config
from and_dist.config.validation import Section, flatten, parse_duration
from and_dist.runs.folder import check_run_folder, keep_choices_of_run
from and_dist.utils import owned_files
from and_dist.utils.formatting import as_text
from launcher.jobs.cluster_profile import Profile

Nodes = Annotated[int, Field(ge=1, le=MOST_NODES)]
Gpus = Annotated[int, Field(ge=0, le=MOST_GPUS)]
Workers = Annotated[int, Field(ge=1, le=MOST_RANKS_OF_A_NODE)]


class Request(Section):
    """Hold everything that the nodes have to know of a job."""

    run: str
    """Absolute path of the run folder."""
    command: tuple[str, ...]
    """Module and arguments that each rank runs after `python -m`."""
    nodes: Nodes
    workers: Workers
    """Number of ranks on a node: one for each GPU."""
    gpus: Gpus
    """Number of GPUs of a node."""
    seconds: Annotated[float, Field(ge=60, le=MOST_SECONDS)]
    """Time limit of one start."""
    python: str
    """Command that runs Python for a node's ranks."""
    host_python: str
    """Command that runs Python in the batch script."""
    code: str
    """Folder with a copy of the packages at submission."""
    profile: Profile
    """The cluster profile without its secrets."""
    has_secrets: bool = False
    """True if there are secrets, in a file beside the copy of the packages."""

    @property
    def world_size(self) -> int:
        """Return the number of ranks on all nodes."""
        return self.nodes * self.workers

    @property
    def folder(self) -> Path:
        """Return the run folder."""
        return Path(self.run)

    @property
    def secrets_file(self) -> Path:
        """Return the file of shell lines that export the secrets."""
        return Path(self.code).with_name("secrets.sh")

    @property
    def minutes(self) -> int:
        """Return the time limit in whole minutes, as SLURM takes it."""
        return max(1, round(self.seconds / 60))


class Size(Section):
    """Hold how many nodes, GPUs and ranks a job takes, and for how long."""

    nodes: Nodes = 1
    gpus: Gpus = 0
    workers: Workers | None = None
    time: str = "1d"

    @property
    def ranks_of_a_node(self) -> int:
        """Return the number of ranks on each node."""
        return self.workers or self.gpus or 1

    def check(self, profile: Profile) -> None:
        """Raise ValueError if ranks would share a GPU or the time limit is too short."""
        if self.gpus and self.workers and self.workers > self.gpus:
            raise ValueError(
                f"--workers {self.workers} on --gpus {self.gpus}: a rank needs a GPU of its own; "
                "leave --workers out, or give --gpus 0 for ranks on CPUs"
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
    """Return the config of one run, with what it has chosen if it has begun.

    Raise ValueError if its folder belongs to another. Nothing is written.
    """
    config = load_config(files, overrides)
    names_images = "data.train" in flatten(parse_overrides(overrides))
    if not (files or names_images or (config.folder / "config.yaml").exists()):
        raise ValueError(
            "say what to train: --config FILE, data.train=FOLDER, or --config demo; `and-dist init "
            "FOLDER > FILE` writes a config for your own images"
        )
    check_in_script(config.folder)
    check_run_folder(config)
    check_writable(config.folder)
    return keep_choices_of_run(config)


def check_in_script(folder: Path) -> None:
    """Raise ValueError unless a folder's path can stand in a line of a batch script.

    sbatch ends an option at the end of its line, and in the names of log files it fills in % and
    leaves out a backslash.
    """
    path = str(folder.absolute())
    if not all(letter.isprintable() and letter not in "%\\" for letter in path):
        raise ValueError(
            f"the run folder {as_text(path)} has a %, a backslash or a control character in its "
            "path, which SLURM does not take as it is; choose another run.root=..."
        )


def check_writable(folder: Path) -> None:
    """Raise ValueError unless the folder can be created or written to."""
    try:
        owned_files.check_writable(folder, f"run folder {folder}")
    except ValueError as error:
        raise ValueError(f"{error}; choose another run.root=...") from None
