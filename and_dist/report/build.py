"""Build RUN/report.html from run folders (`and-dist report RUN`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from and_dist.distributed.launch_env import AllRanksError
from and_dist.report.page import render
from and_dist.report.run_history import History, read_history
from and_dist.utils.owned_files import IsOurs, make_folder, starts_with, write_file
from and_dist.utils.progress import Phase

if TYPE_CHECKING:
    from and_dist.distributed.world import World
    from and_dist.report.checkpoint_views import Findings

MOST_BYTES = 15_000_000
"""The largest size of a page that is written."""
is_report = starts_with(r"(?s)<!doctype html>.*<title>[^<]* - and-dist report</title>")


def read_histories(run: Path, others: Sequence[Path]) -> list[History]:
    """Read a run and the runs to compare it with; runs of one name are named by their folders.

    Raise ValueError for a folder that holds no run and for a folder that is given twice.
    """
    runs = [run, *others]
    resolved = [path.resolve() for path in runs]
    if twice := [str(path) for path in runs if resolved.count(path.resolve()) > 1]:
        raise ValueError(f"--compare {twice[0]}: it is the run itself, or named twice")
    histories = [read_history(path) for path in runs]
    names = [history.name for history in histories]
    return [
        replace(history, name=str(path)) if names.count(history.name) > 1 else history
        for history, path in zip(histories, runs, strict=True)
    ]


def gather(history: History, world: World | None, phase: Phase) -> Findings | None:
    """Return the findings from the run's checkpoints, or None if there is no checkpoint yet.

    Where torch is missing there is no world, and checkpoints are not looked at.
    Raise ValueError, OSError or AllRanksError if the checkpoints cannot be read.
    """
    if world is None:
        return None
    from and_dist.report.checkpoint_views import gather_findings

    # A run that is still training may delete a checkpoint while it is read. Then there is a newer
    # one, and reading starts again.
    while name := newest_checkpoint(history.run):
        try:
            return gather_findings(history.run, history.config, world, phase)
        except (ValueError, OSError, AllRanksError):
            if newest_checkpoint(history.run) == name:
                raise
    return None


def newest_checkpoint(run: Path) -> str:
    """Return the name of a run's newest checkpoint, "" if it has none yet; torch is needed."""
    from and_dist.checkpoint.names import list_checkpoints

    return next(iter(list_checkpoints(run / "checkpoints")), "")


def write_page(
    histories: Sequence[History], findings: Findings | None, out: Path, may_replace: IsOurs
) -> int:
    """Write the page and return its size in bytes; raise ValueError above MOST_BYTES."""
    page = render(histories, findings, "1", None)
    size = len(page.encode())
    if size > MOST_BYTES:
        raise ValueError(f"a page of {size / 1e6:.0f} MB; --compare fewer runs")
    make_folder(out.parent)
    write_file(out, page, may_replace)
    return size
