"""Define `and-launch`: submit, sweep, local, status, logs, cancel, requeue, doctor.

An invalid config, option or profile fails with an error message and exit code 2; an error of the
machine or a failed run with exit code 1. Exit code 75 means that a run was stopped and resumes when
it is started again.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from and_dist.commands.options import LogLevel, Version
from and_dist.config.limits import MOST_GPUS, MOST_NODES, MOST_RANKS_OF_A_NODE
from and_dist.config.load import load_config
from and_dist.distributed.watchdog import TRY_AGAIN
from and_dist.utils.disk_errors import DiskError
from and_dist.utils.formatting import safe_lines
from and_dist.utils.logs import set_up_logging
from launcher.gpus import Place, choose_gpus
from launcher.jobs.cluster_profile import Profile, load_profile
from launcher.jobs.request import Size
from launcher.logs import Follower, list_ranks, read_failure, read_tail
from launcher.node.rank import log_of
from launcher.slurm import client
from launcher.status import Status, as_lines, is_active, look_at

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Submit a config as a job on many nodes, and follow it to its end.",
)
log = logging.getLogger(__name__)
POLL_SECONDS = 2.0
"""The time between two looks at a job that is followed."""

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; several merge from left to right."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, as for and-dist train.")]
ClusterFile = Annotated[
    Path | None, typer.Option("--cluster", help="Cluster profile, such as slurm/example.yaml.")
]
Nodes = Annotated[int, typer.Option(min=1, max=MOST_NODES, help="Number of nodes.")]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=MOST_GPUS,
        help="GPUs of a node, a rank on each; 0 trains on CPUs. Without it, those of the cluster "
        "profile or of this machine; where nothing is certain, you are asked.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_RANKS_OF_A_NODE, help="Ranks of a node, if not its number of GPUs."
    ),
]
TimeLimit = Annotated[
    str,
    typer.Option("--time", help="Time limit of a start: 2d, 36h, 90m, or as SLURM writes it."),
]
Run = Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")]


@app.callback()
def about(log_level: LogLevel = "warning", _: Version = False) -> None:
    """Run a verb; `and-launch VERB --help` says more about each."""
    set_up_logging("and-launch", log_level)


@app.command()
def submit(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    cluster: ClusterFile = None,
    nodes: Nodes = 1,
    gpus: Gpus = None,
    workers: Workers = None,
    limit: TimeLimit = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it; submit nothing.")] = False,
    after: Annotated[str | None, typer.Option(help="Start when this job has ended.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log until it ends.")] = False,
) -> None:
    """Submit a run to SLURM. The job requeues itself until the run is trained to its end."""
    from launcher import submit as submission

    asked, profile = Asked(nodes, gpus, workers, limit), _profile(cluster)
    device = load_config(config or [], overrides or []).run.device
    size = _size(asked, profile, device, "nowhere" if dry_run else "cluster")
    wanted = submission.prepare(config or [], overrides or [], profile, size)
    if dry_run:
        for line in submission.describe_dry(wanted, after):
            typer.echo(line)  # a script to the letter
        return
    client.check_slurm()
    active = is_active(wanted.config.folder)
    if active is not None:
        raise ValueError(
            f"{wanted.config.folder} is in use by job {active}; and-launch cancel it first"
        )
    for line in submission.describe(wanted):
        say(line)
    job_id = submission.submit(wanted, after)
    run = wanted.config.folder
    say(f"job {job_id}: submitted")
    say(f"  state  and-launch status {run}")
    say(f"  logs   and-launch logs -f {run}     ({run}/logs/)")
    say(f"  stop   and-launch cancel {run}     (the same command goes on)")
    if follow:
        sys.exit(_follow(run, 0))


@app.command()
def local(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    cluster: ClusterFile = None,
    nodes: Nodes = 1,
    gpus: Gpus = None,
    workers: Workers = None,
    limit: TimeLimit = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it; start nothing.")] = False,
) -> None:
    """Run a job on this machine, with a process for each node."""
    from launcher import submit as submission
    from launcher.local import run_here, torchrun_commands

    asked, profile = Asked(nodes, gpus, workers, limit), _profile(cluster)
    device = load_config(config or [], overrides or []).run.device
    size = _size(asked, profile, device, "here")
    wanted = submission.prepare(config or [], overrides or [], profile, size)
    for line in submission.describe(wanted):
        say(line)
    if dry_run:
        request = wanted.request(wanted.config.folder, Path())
        for command in torchrun_commands(request, wanted.given):
            typer.echo(command)  # to the letter
        return
    try:
        end = run_here(submission.write_down(wanted, has_time_limit=True))
    except DiskError as error:
        log.error("%s; the same command goes on once that is mended", error)
        sys.exit(TRY_AGAIN)
    say(f"and-launch: {end.state}, {end.why}")
    if end.state == "failed":
        _say_failure(wanted.config.folder, end.rank)
    sys.exit({"finished": 0, "stopped": TRY_AGAIN}.get(end.state, 1))


@app.command()
def status(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or the folder of a sweep.")],
) -> None:
    """Show state, nodes, place in the queue, progress, restarts, and why a run ended."""
    from launcher.sweep import is_sweep, table_of

    for run in runs:
        if is_sweep(run):
            say(table_of(run))
            continue
        for line in as_lines(look_at(run)):
            say(line)


@app.command()
def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    rank: Annotated[int, typer.Option(help="The rank.")] = 0,
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 40,
) -> None:
    """Show the log of a rank; after a failure, first the traceback of the rank that failed."""
    found, ranks = look_at(run), list_ranks(run)
    if found.request is not None and not 0 <= rank < found.request.world_size:
        raise ValueError(
            f"{run} has no rank {rank}: its ranks are 0 to {found.request.world_size - 1}"
        )
    if found.end is not None and found.end.state != "finished":
        say(f"{found.end.state}: {found.end.why}")
        _say_failure(run, found.end.rank)
    log = log_of(run, rank)
    text = read_tail(log, lines) if ranks else _said_before_ranks(found)
    for line in text or [f"rank {rank} has written no log yet"]:
        say(line)
    if follow:
        sys.exit(_follow(run, rank))


@app.command()
def cancel(run: Run) -> None:
    """Cancel the job of a run. Submitted again, it resumes from the last checkpoint."""
    job_id = _active_job(run)
    client.cancel(job_id)
    say(f"job {job_id} is cancelled; the same and-launch submit goes on")


@app.command()
def requeue(run: Run) -> None:
    """Tell a running job to save and restart, or queue a job again that is over."""
    found = look_at(run)
    job_id, known = found.job_id, found.slurm
    if job_id is None or known is None:
        raise ValueError(f"SLURM knows no job of {run}; and-launch submit resumes it")
    if found.state == "finished":
        raise ValueError(f"{run} is trained to its end; there is nothing to resume")
    if known.state == "PENDING":
        raise ValueError(f"job {job_id} is waiting already ({known.reason})")
    if found.request is not None and not found.request.profile.requeues:
        raise ValueError(
            f"job {job_id} would not start again, its cluster profile says requeues: false; "
            "and-launch cancel it, then submit it again"
        )
    if known.state == "RUNNING":
        client.cancel(job_id, "USR2")
        say(f"job {job_id} was told to save, and will start again")
        return
    client.requeue(job_id)
    say(f"job {job_id} is queued again")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file, such as configs/sweeps/demo.yaml.")],
    cluster: ClusterFile = None,
    nodes: Nodes = 1,
    gpus: Gpus = None,
    workers: Workers = None,
    limit: TimeLimit = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it; submit nothing.")] = False,
    here: Annotated[bool, typer.Option("--local", help="One by one on this machine.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait, and show the table.")] = False,
) -> None:
    """Submit a grid or list of overrides as one job array, without runs that are done or active."""
    from launcher.sweep import Way, device_of, run_sweep

    asked, profile = Asked(nodes, gpus, workers, limit), _profile(cluster)
    place: Place = "here" if here else "nowhere" if dry_run else "cluster"
    size = _size(asked, profile, device_of(file), place)
    way = Way(here, dry_run, follow, _as_options(size, cluster))
    sys.exit(run_sweep(file, profile, size, way, typer.echo))


@app.command()
def doctor(
    cluster: ClusterFile = None,
    nodes: Nodes = 2,
    gpus: Gpus = None,
    folder: Annotated[Path, typer.Option(help="A shared folder, as for runs.")] = Path("runs"),
    patience: Annotated[int, typer.Option(help="Seconds to wait for the job to start.")] = 600,
) -> None:
    """Test a cluster profile with a job of a minute that sums a number over all ranks."""
    from launcher.doctor import examine

    profile = _profile(cluster)
    if gpus is None:
        gpus = choose_gpus(nodes, None, profile, "cluster", say)
    size = Size(nodes=nodes, gpus=gpus, time="1m")
    sys.exit(examine(profile, size, folder, patience, say))


class Asked(NamedTuple):
    """Hold the options for the size of a job as they were given."""

    nodes: int
    gpus: int | None
    workers: int | None
    time: str


def _size(asked: Asked, profile: Profile, device: str, place: Place) -> Size:
    """Return the size of a job; ask for its GPUs if nothing else says how many a node has.

    `device` is the run.device of its config.
    """
    nodes, gpus, workers, limit = asked
    size = Size(nodes=nodes, gpus=gpus or 0, workers=workers, time=limit)
    size.check(profile)
    if gpus is not None or device == "cpu":
        return size
    return size.model_copy(update={"gpus": choose_gpus(nodes, workers, profile, place, say)})


def _as_options(size: Size, cluster: Path | None) -> tuple[str, ...]:
    """Return the options that give the same size and profile to another command."""
    workers = () if size.workers is None else ("--workers", str(size.workers))
    profile = () if cluster is None else ("--cluster", str(cluster))
    counts = ("--nodes", str(size.nodes), "--gpus", str(size.gpus))
    return (*counts, *workers, "--time", size.time, *profile)


def _profile(cluster: Path | None) -> Profile:
    return load_profile(cluster) if cluster else Profile()


def _active_job(run: Path) -> str:
    job_id = is_active(run)
    if job_id is None:
        raise ValueError(f"no job of {run} waits or runs: {as_lines(look_at(run))[0]}")
    return job_id


def _say_failure(run: Path, rank: int | None) -> None:
    if rank is None:
        return
    say(f"last lines of rank {rank} ({log_of(run, rank)}):")
    for line in read_failure(log_of(run, rank)):
        say(f"  {line}")


def _said_before_ranks(found: Status) -> list[str]:
    """Return the last lines of the batch script, srun and torchrun, for a run without rank logs."""
    files = sorted((found.run / "logs").glob("node-*.log"))
    if found.request is not None:  # the batch log of an array lies in the folder of the sweep
        job = Path(found.request.code).parent
        sweep = found.run.absolute().parent.resolve()
        if job.resolve().is_relative_to(sweep):
            files = sorted(job.glob(f"{found.job_id}_*_log.out")) + files
    return [f"{file.name}: {line}" for file in files for line in read_tail(file, 20)]


def _follow(run: Path, rank: int) -> int:
    """Show a rank's log until the job is over; return exit code 0 if the run is finished, else
    1."""
    follower = Follower(log_of(run, rank))
    said = ""
    while True:
        found = look_at(run)
        follower.show_more()
        if found.state != said:
            said = found.state
            say(f"and-launch: {as_lines(found)[0]}")
        if found.is_over:
            if found.end is not None:
                say(f"and-launch: {found.end.state}, {found.end.why}")
            return 0 if found.state == "finished" else 1
        time.sleep(POLL_SECONDS)


def say(text: str) -> None:
    """Print lines; what they have from a run's files must not control the terminal."""
    typer.echo(safe_lines(text.expandtabs()))


def main() -> None:
    """Run the command line; log errors as a message and exit with code 2 or 1."""
    set_up_logging("and-launch", "warning")
    try:
        app()
    except ValueError as error:
        log.error("%s", error)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        log.error("%s", error)
        sys.exit(1)
