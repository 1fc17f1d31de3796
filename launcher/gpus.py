"""Find out how many GPUs each node of a job gets, where --gpus does not say it.

A cluster profile, this machine or SLURM may know it. Where the number is not certain, a person at a
terminal is asked, and a script is refused, so that no job trains on CPUs by surprise. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import typer

from and_dist.distributed.launch_env import count_gpus
from launcher.jobs.cluster_profile import Profile
from launcher.slurm import client

Place = Literal["here", "cluster", "nowhere"]
"""Where a job would run: on this machine, on SLURM's nodes, or on these in a dry run."""


@dataclass(frozen=True)
class Known:
    """Hold what is known of the GPUs of a node before anybody is asked."""

    gpus: int | None
    """Their number; None if nothing says it."""
    fact: str
    """What says so, as a part of a sentence."""
    is_certain: bool = False
    """True if the number is taken without a question."""


def choose_gpus(
    nodes: int, workers: int | None, profile: Profile, place: Place, say: Callable[[str], None]
) -> int:
    """Return the GPUs of a node, one for each of `workers`.

    Raise ValueError where they are not certain and nobody can be asked.
    """
    if place == "here":
        known = _known_here(nodes, profile)
    else:
        if place == "cluster":
            client.check_slurm()
        known = _known_of_cluster(profile)
    if known.gpus == 0 or (known.gpus is None and workers is not None):
        return 0  # ranks without GPUs are what --workers is for
    gpus = min(known.gpus or 0, workers or known.gpus or 0)
    if known.is_certain:
        for_workers = f" for --workers {workers}" if workers else ""
        say(f"--gpus {gpus}{for_workers}: {known.fact}; --gpus 0 trains on CPUs")
        return gpus
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError(
            f"--gpus is missing, and {known.fact}: give --gpus N, or --gpus 0 for CPUs"
        )
    question = f"--gpus is missing, and {known.fact}. How many GPUs a node? 0 trains on CPUs"
    answer = int(typer.prompt(question, default=gpus, type=int, err=True))
    if answer < 0:
        raise ValueError(f"--gpus {answer} is no number of GPUs; 0 trains on CPUs")
    return answer


def _known_here(nodes: int, profile: Profile) -> Known:
    """Return the share of each of some nodes that are processes of this machine."""
    here, most = count_gpus({**os.environ, **profile.environment}), profile.gpus_per_node
    if 0 < here < nodes and most != 0:
        raise ValueError(
            f"this machine has {here} GPU(s) for --nodes {nodes}: give fewer nodes, or --gpus 0 "
            "for CPUs"
        )
    share = here // nodes if most is None else min(here // nodes, most)
    of_each = f", {share} for each of {nodes} nodes" if nodes > 1 else ""
    return Known(share, f"this machine has {here} GPU(s){of_each}", True)


def _known_of_cluster(profile: Profile) -> Known:
    if profile.gpus_per_node is not None:
        fact = f"gpus_per_node of the cluster profile is {profile.gpus_per_node}"
        return Known(profile.gpus_per_node, fact, True)
    if any(option == "gres" or option.startswith("gpus") for option in profile.sbatch):
        return Known(0, "options of sbatch in the cluster profile ask for GPUs", True)
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    gpus = client.gpus_of_nodes(profile.partition)
    if gpus is None:
        return Known(None, "nothing says whether the nodes have GPUs, so this job would use CPUs")
    return Known(gpus, f"nodes of {where} have {gpus} GPU(s)")
