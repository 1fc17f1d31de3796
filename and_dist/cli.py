"""Run `and-dist`, and `torchrun ... -m and_dist`: one rank's commands and exit codes.

Bad input ends with an error message and exit code 2, a fault of the machine with one and exit code
1. A run that was stopped and resumes when started again ends with exit code 75.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import NoReturn

import typer

from and_dist.commands.config import config
from and_dist.commands.discover import discover
from and_dist.commands.embed import embed
from and_dist.commands.evaluate import evaluate
from and_dist.commands.export import export
from and_dist.commands.init import init
from and_dist.commands.neighbours import neighbours
from and_dist.commands.options import LogLevel, Version
from and_dist.commands.plan import plan
from and_dist.commands.prepare import prepare
from and_dist.commands.report import report
from and_dist.commands.table import table
from and_dist.commands.train import train
from and_dist.distributed.launch_env import (
    AllRanksError,
    end_launcher,
    is_first_of_node,
    is_rank_zero,
    let_the_cause_end_first,
    named_rank,
    read_launch_env,
    tell_launcher,
)
from and_dist.distributed.watchdog import TRY_AGAIN, Paused, Stopped, Watchdog
from and_dist.utils.formatting import safe_lines
from and_dist.utils.logs import count_library_warnings, set_up_logging

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Train image encoders without labels by Anchor Neighbourhood Discovery.",
)

log = logging.getLogger(__name__)
SECONDS_FOR_THE_FIRST = 10.0
OF_TRAINING = ("torch", "torchvision", "nvidia", "faiss", "safetensors", "scipy", "tensorboard")
"""Modules that a login node does without."""
HOW_TO_INSTALL = (
    "this command needs `pip install 'and-dist[cuda13]'`, or [cuda12]; see docs/install.md"
)


@app.callback()
def about(log_level: LogLevel = "warning", _: Version = False) -> None:
    """Run a verb; `and-dist VERB --help` says more about each."""
    set_up_logging("and-dist", log_level, is_rank_zero())


for verb in (
    train,
    init,
    discover,
    evaluate,
    table,
    report,
    neighbours,
    embed,
    prepare,
    export,
    plan,
    config,
):
    app.command()(verb)


def refuse(error: ValueError) -> NoReturn:
    """Print what a user gave wrong, and end with exit code 2.

    Mostly all ranks refuse the same. The first of each node prints it at once; the others print
    it if nobody has ended them since, as torchrun does where the first has failed.
    """
    said = safe_lines(str(error))
    if not is_rank_zero():
        if not is_first_of_node():
            time.sleep(SECONDS_FOR_THE_FIRST)
        said = f"rank {named_rank()}: {said}"
    log.error("%s", said)
    end(2, said)


def end(status: int, said: str) -> NoReturn:
    """End with an exit code; a launcher that has the last word repeats what this rank has said."""
    tell_launcher(f"and-dist: {said}")
    sys.exit(status)


def stop(request: Stopped) -> NoReturn:
    """Say why all ranks have stopped, and end with exit code 75."""
    said = f"stopped by {request}; the same command goes on"
    if is_rank_zero():
        log.warning("%s", said)
    if request.ends_the_job:
        end_launcher()
    end(TRY_AGAIN, said)


def pause(error: Paused) -> NoReturn:
    """Say what a disk refused, once if all ranks know it, and end with exit code 75."""
    said = f"{error}; the same command goes on once that is mended"
    if not error.is_of_all_ranks:
        said = f"rank {named_rank()}: {said}"
    if is_rank_zero() or not error.is_of_all_ranks:
        log.error("%s", said)
    end_launcher()
    end(TRY_AGAIN, said)


def fail(error: Exception) -> NoReturn:
    """Print a fault of the machine, and end with exit code 1.

    Where all ranks fail together, the first speaks for all.
    """
    if isinstance(error, AllRanksError):
        said = str(error)
        if is_rank_zero():
            log.error("%s", said)
    else:
        said = f"rank {read_launch_env().rank}: {error}"
        log.error("%s", said)
        let_the_cause_end_first(said)
    end(1, said)


def run_verb() -> None:
    """Run a verb, and end with the exit code that fits how it ended."""
    library_warnings = count_library_warnings()
    try:
        try:
            with Watchdog() as watchdog:
                app(obj=watchdog)
        finally:  # before the error, which stands last
            library_warnings.log_numbers()
    except ValueError as error:
        refuse(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OF_TRAINING:
            raise
        refuse(ValueError(f"{error.name} is not installed: {HOW_TO_INSTALL}"))
    except Stopped as request:
        stop(request)
    except Paused as error:
        pause(error)
    except (RuntimeError, OSError) as error:
        fail(error)


def main() -> None:
    """Run the command line; what typer refuses, and tracebacks, are told to the launcher too."""
    set_up_logging("and-dist", "warning", is_rank_zero())
    try:
        run_verb()
    except Exception as error:
        tell_launcher(f"and-dist: rank {named_rank()}: {type(error).__name__}: {error}")
        raise
    except SystemExit as ended:
        # typer raises it from its own error, whose class is click's or a copy of click's.
        describe = getattr(ended.__context__, "format_message", None)
        if describe is not None:
            tell_launcher(f"and-dist: {describe()}")
        raise
