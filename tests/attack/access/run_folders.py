"""Bend run folders as somebody who means harm would, and open them in every way there is.

What an opening may do is show the run, or refuse it by a sentence (ValueError, OSError, or
AllRanksError). It may not run anything, open anything outside the folder, never end, end in another
exception, or print what controls a terminal.

    python -m tests.attack.access.run_folders [--trials N] [--seed S] [--every N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from and_dist.checkpoint.bank_reader import StoredBank
from and_dist.checkpoint.reader import load_bank, load_encoder, open_checkpoint, refuse_corrupt
from and_dist.checkpoint.storage import find_latest_valid
from and_dist.config.comparison import TEST_KEYS
from and_dist.config.load import load_config
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World, open_world
from and_dist.report.build import read_histories
from and_dist.report.page import render
from and_dist.report.render_tables import as_csv, as_latex, as_markdown
from and_dist.report.tables import collect
from and_dist.runs.folder import check_run_folder
from and_dist.utils.formatting import safe_lines
from launcher.jobs.job_folder import job_folders, read_node_ends, starts
from launcher.logs import list_ranks, read_failure, read_tail
from launcher.node.rank import log_of
from launcher.status import as_lines, look_at
from tests.attack.access.bent_folders import Trial, changes, plants

FIXTURES = Path(__file__).parents[2] / "fixtures"
SECONDS = 20
ALLOWED = (ValueError, OSError, AllRanksError)
SECRET = "the secret of the one who opens it"


def report(run: Path, _: World) -> str:
    """Make the page without pictures."""
    histories = read_histories(run, [])
    return render(histories, None, "1", None)[:0] + histories[0].state


def table(run: Path, _: World) -> str:
    """Make tables of the run, in every format."""
    found = collect([run])
    return as_csv(found) + as_markdown(found) + as_latex(found)


def status(run: Path, _: World) -> str:
    """Show what and-launch knows of it."""
    found = look_at(run)
    lines = as_lines(found)
    for job in job_folders(run):
        for start in starts(job):
            lines += [end.problem for end in read_node_ends(job, start).values()]
    for rank in list_ranks(run):
        lines += [*read_failure(log_of(run, rank)), *read_tail(log_of(run, rank), 40)]
    return safe_lines("\n".join(lines))


def evaluate(run: Path, world: World) -> str:
    """Open the checkpoint as evaluate, export, embed and discover do."""
    opened = open_checkpoint(run)
    refuse_corrupt(opened, world)
    load_encoder(opened, world)
    load_bank(opened, world)
    StoredBank(opened.checkpoint)
    return opened.checkpoint.name


def resume(run: Path, world: World) -> str:
    """Look for a checkpoint to go on from, as training does."""
    config = open_checkpoint(run).config
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"root": str(run.parent)})}
    )
    check_run_folder(config.model_copy(update={"name": run.name}))
    said: list[str] = []
    find_latest_valid(run / "checkpoints", world, said.append)
    return "\n".join(said)


OPENINGS = (report, table, status, evaluate, resume)


class Watcher:
    """Notes what is opened outside of a folder, and what is started."""

    folder: Path | None = None
    found: ClassVar[list[str]] = []

    @classmethod
    def hear(cls, event: str, arguments: tuple[Any, ...]) -> None:
        """Hear what Python does."""
        if cls.folder is None:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            follows = not arguments[2] & os.O_NOFOLLOW
            folder, name = os.path.split(path)
            path = os.path.realpath(path if follows else folder)
            path = path if follows else os.path.join(path, name)
            if path.startswith((str(cls.folder.parent / "outside"), "/dev/zero")):
                cls.found.append(f"opens {path}")
        elif event in ("os.system", "os.exec", "pickle.find_class"):
            cls.found.append(f"{event} {arguments}")


def stop(*_: object) -> None:
    """End an opening that takes too long."""
    raise TimeoutError("it does not end")


def attempt(opening: Callable[[Path, World], str], run: Path, world: World) -> str:
    """Open a folder; return what is wrong with that, "" for nothing."""
    Watcher.folder, Watcher.found = run, []
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    wrong = ""
    try:
        said = opening(run, world)
        wrong = "shows what is outside" if SECRET in said else ""
    except TimeoutError as error:
        said, wrong = "", str(error)
    except ALLOWED as error:
        said = safe_lines(str(error))  # as and_dist.utils.logs prints it
        wrong = "tells what is outside" if SECRET in said else ""
    except (Exception, RecursionError) as error:
        said, wrong = "", f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        signal.alarm(0)
        Watcher.folder = None
    if "\x1b" in said and opening is not report:
        wrong = wrong or "controls the terminal"
    if list(run.parent.rglob("executed")) or os.path.exists("executed"):
        wrong = "executes what it holds"
    return wrong or "; ".join(Watcher.found)


def run_trial(trial: Trial, original: Path, root: Path, world: World) -> dict[str, str]:
    """Bend a fresh copy for each way to open it; return what went wrong, by the way."""
    found = {}
    for opening in OPENINGS:
        folder = root / "of-somebody"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "outside").mkdir(parents=True)
        (folder / "outside/secret").write_text(SECRET)
        (folder / "outside/secret.yaml").write_text(f"name: {SECRET!r}")
        run = shutil.copytree(original, folder / "run")
        trial.bend(run)
        if wrong := attempt(opening, run, world):
            found[opening.__name__] = wrong
    return found


def prepare_runs(root: Path) -> list[Path]:
    """Return runs of earlier revisions, complete with an evaluation and a stall."""
    runs = []
    for name in ("and", "job"):
        run = shutil.copytree(FIXTURES / name, root / "originals" / name)
        (run / "stalls").mkdir()
        (run / "stalls/rank-0.txt").write_text("--- 2026-11-21 10:00:00 +0000: nothing moved\n")
        config = load_config([run / "config.yaml"])
        last = f"r{config.last_round:02}-e{config.epochs_of(config.last_round):04}"
        (run / "evaluation" / last).mkdir(parents=True, exist_ok=True)
        figures = {
            "says": "kNN",
            "top1": 0.5,
            "top5": 0.9,
            "interval": [0.4, 0.6],
            "images": 96,
            "unreadable": 0,
        }
        about = {"checkpoint": last, "protocol": {"knn": 20}, "of": {"bank": figures}}
        about |= {key: getattr(config.data, key) for key in TEST_KEYS}
        (run / "evaluation" / last / "knn.json").write_text(json.dumps(about))
        rounds = [{"round": r, "knn": 0.5, "knn_bank": 0.4} for r in range(config.last_round + 1)]
        summary = {"rounds": rounds, "raw_pixels": {}, "random": {}, "seconds": 1.0}
        (run / "summary.json").write_text(json.dumps(summary))
        runs.append(run)
    return runs


def campaign(num_changes: int, seed: int, every: int = 1) -> tuple[Counter[str], list[str]]:
    """Try every `every`-th plant and some random changes; return counts and what went wrong."""
    sys.addaudithook(Watcher.hear)
    counts, wrongs = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root, open_world("cpu") as world:
        for original in prepare_runs(Path(root)):
            for opening in OPENINGS:
                shown = opening(shutil.copytree(original, Path(root) / opening.__name__), world)
                assert shown or opening is resume, "what is not bent has to open"
                shutil.rmtree(Path(root) / opening.__name__)
            random_ = random.Random(f"{seed} {original.name}")
            endless = changes(original, random_)
            trials = [*list(plants(original))[seed % every :: every]]
            trials += [next(endless) for _ in range(num_changes)]
            for trial in trials:
                found = run_trial(trial, original, Path(root), world)
                counts["cases"] += len(OPENINGS)
                counts["wrong"] += len(found)
                wrongs += [f"{original.name}: {trial.what}: {way}: {w}" for way, w in found.items()]
    return counts, wrongs


def main() -> None:
    """Print what went wrong, and how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    counts, wrongs = campaign(options.trials, options.seed, options.every)
    print("\n".join(wrongs))
    print({"wrong": len(wrongs), "cases": counts["cases"]}, f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(wrongs))


if __name__ == "__main__":
    main()
