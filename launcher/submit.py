"""Check a run, write down its job and submit it, in this order."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from and_dist.config.schema import Config
from and_dist.config.validation import parse_duration
from and_dist.planning.advice import Advice, about_small_batch
from and_dist.planning.catalogue import find_hardware
from and_dist.planning.costs import UncountedEncoder
from and_dist.planning.plan import Plan, plan_job
from and_dist.planning.printout import in_short
from and_dist.planning.workload import Job
from and_dist.planning.workload import Size as JobSize
from and_dist.runs.folder import write_config
from and_dist.utils.owned_files import check_file, or_empty
from and_dist.utils.owned_folders import remove_tree
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    is_log,
    new_job_folder,
    remove_job,
    take_snapshot,
    write_request,
)
from launcher.jobs.request import Request, Size, load_run
from launcher.node.placement import NodePlacement
from launcher.node.runner import command_of
from launcher.slurm import client, sbatch

MANY_ROWS = 10**9
"""The number of images that a run is taken to have where they cannot be counted."""


@dataclass(frozen=True)
class RunSpec:
    """Hold a checked run that can be submitted."""

    config: Config
    profile: Profile
    size: Size
    plan: Plan | None
    """Predicted time and memory; None where they cannot be predicted here."""
    unplanned: str
    """The reason why there is no plan, where there is none."""
    advice: Advice | None
    """What to change if a step has too few images for so many ranks."""
    given: tuple[str, ...]
    """Config files and overrides as arguments of a command."""

    def request(self, job: Path, code: Path) -> Request:
        """Return the request for a job in the folder `job` that runs the packages in `code`."""
        size = self.size
        return Request(
            run=str(self.config.folder.absolute()),
            command=("and_dist", "train", "--config", str(job / "config.yaml")),
            nodes=size.nodes,
            workers=size.ranks_of_a_node,
            gpus=size.gpus,
            seconds=parse_duration(size.time, "--time"),
            **pythons_of(self.profile),
            code=str(code),
            profile=self.profile.without_secrets(),
            has_secrets=bool(self.profile.secrets),
        )


def pythons_of(profile: Profile) -> dict[str, str]:
    """Return the commands that run Python on a node and, outside any container, in the batch
    script."""
    ours = shlex.quote(sys.executable)
    return {"python": profile.python or ours, "host_python": profile.host_python or ours}


def prepare(
    files: Sequence[str | Path], overrides: Sequence[str], profile: Profile, size: Size
) -> RunSpec:
    """Return a run after all checks; raise ValueError if it cannot work. Nothing is written."""
    size.check(profile)
    config = load_run(files, overrides)
    for log in (config.folder / "logs").glob("*.log"):
        check_file(log, or_empty(is_log))
    ranks = size.ranks_of_a_node
    cores = profile.cpus_per_node or ranks * (profile.cpus_per_gpu or 1)
    name = profile.gpu if size.gpus else "cpu"
    hardware = find_hardware(name) if name is not None else None
    memory_gb = None if size.gpus else profile.memory_gb
    job_size = JobSize(size.nodes, ranks, cores)
    plan, advice = None, None
    unplanned = f"data.train={config.data.train} cannot be read from here"
    try:
        plan = plan_job(config, job_size, hardware, memory_gb=memory_gb)
        job = Job(config, MANY_ROWS, job_size, hardware) if plan is None else plan.job
        advice = about_small_batch(job)
    except UncountedEncoder as error:  # on a login node without torch
        unplanned = str(error)
    if profile.memory_gb is not None and config.data.cache_gb > profile.memory_gb:
        raise ValueError(
            f"data.cache_gb = {config.data.cache_gb} does not fit a node: memory_gb = "
            f"{profile.memory_gb} in the cluster profile"
        )
    options = [option for file in files for option in ("--config", str(file))]
    return RunSpec(config, profile, size, plan, unplanned, advice, (*options, *overrides))


def describe(wanted: RunSpec) -> list[str]:
    """Return lines on a run's size, images and predicted time and memory."""
    size, plan, config = wanted.size, wanted.plan, wanted.config
    images = "unknown images" if plan is None else f"{plan.job.num_rows:,} images"
    lines = [
        f"{config.name}: {images}, {config.encoder.name}, {size.nodes} node(s) of "
        f"{size.ranks_of_a_node} {'GPU' if size.gpus else 'CPU rank'}(s), "
        f"{config.num_epochs} epochs of training in {config.last_round + 1} round(s)",
    ]
    if plan is None:
        lines.append(f"  no prediction: {wanted.unplanned}")
    else:
        lines.extend(map("  {}".format, in_short(plan)))
    return [*lines, *warnings_of(wanted)]


def warnings_of(wanted: RunSpec) -> list[str]:
    """Return a line on what a user may not have meant, or none."""
    advice = wanted.advice
    return [] if advice is None else [f"  warning: {advice.effect}; better is {advice.change}"]


def write_down(
    wanted: RunSpec, has_time_limit: bool = False, made: list[Path] | None = None
) -> Path:
    """Write the job's folder with everything its nodes need; add it to `made` first, and return
    it."""
    config = wanted.config
    write_config(config, config.folder)
    job = new_job_folder(config.folder.absolute(), made)
    fill(job, wanted, job / "code", has_time_limit)
    take_snapshot(job / "code", wanted.profile.secrets)
    return job


def fill(job: Path, wanted: RunSpec, code: Path, has_time_limit: bool = False) -> None:
    """Write a job's config and request into its folder."""
    config = wanted.config
    # A container or sbatch may give the ranks another working directory.
    update = {"root": str(Path(config.run.root).absolute())}
    if has_time_limit and config.run.time_limit is None:  # here no SLURM enforces the limit
        update["time_limit"] = wanted.size.time
    run = config.run.model_copy(update=update)
    write_config(config.model_copy(update={"run": run}), job, of="job")
    write_request(job, wanted.request(job, code))


def submit(wanted: RunSpec, after: str | None) -> str:
    """Submit a run and return the id of its job; after an error nothing is left behind."""
    with all_or_nothing(wanted.config.folder) as made:
        job = write_down(wanted, made=made)
        request = wanted.request(job, job / "code")
        job_id = sbatch.submit(job, request, wanted.config.name, after)
        refuse_what_never_starts(job_id, request)
    return job_id


@contextmanager
def all_or_nothing(*runs: Path) -> Iterator[list[Path]]:
    """Yield a list for the job folders of a submission, and undo the submission if it fails.

    Whatever exception ends the block, the jobs of these folders are cancelled, and the folders and
    the new files of `runs` are removed.
    """
    new_runs, made = [run for run in runs if not os.path.lexists(run)], list[Path]()
    try:
        yield made
    except BaseException:
        for job in made:
            client.cancel_jobs_of(job.absolute())
            remove_job(job)
        for run in new_runs:
            remove_tree(run, ("config.yaml", "sweep.json"))
        raise


def refuse_what_never_starts(job_id: str, request: Request) -> None:
    """Raise ValueError if SLURM has queued a job that it would never start."""
    known = client.find_scheduled_job(job_id)
    if known is None:
        return
    profile = request.profile
    wanted = [
        f"{key}={value}"
        for key in ("partition", "account", "qos", "constraint")
        if (value := getattr(profile, key)) is not None
    ]
    wanted += [f"--nodes {request.nodes}", f"--gpus {request.gpus}", f"{request.minutes} minutes"]
    client.check_can_start(known, wanted)


def describe_dry(wanted: RunSpec, after: str | None) -> list[str]:
    """Return lines that show what would be submitted; nothing is written."""
    job = wanted.config.folder.absolute() / "jobs" / "NEXT"
    request = wanted.request(job, job / "code")
    script = dry_script([job], request, wanted.config.name, after)
    return [*describe(wanted), "", script, "", "# on each node", command_of_one_node(wanted)]


def dry_script(
    jobs: Sequence[Path], request: Request, name: str, after: str | None = None, parallel: int = 1
) -> str:
    """Return the sbatch script of jobs that are not submitted."""
    return sbatch.script_of(Path(request.code).parent, jobs, request, name, after, parallel)


def command_of_one_node(wanted: RunSpec) -> str:
    """Return the command that the first node would run."""
    job = wanted.config.folder.absolute() / "jobs" / "NEXT"
    place = NodePlacement("JOB", 0, 0, wanted.size.nodes, "NODE", "NODE", "FIRST_NODE:PORT")
    command = command_of(job, wanted.request(job, job / "code"), place)
    return shlex.join(command)
