"""The places at which configs come in, and what a run does with those that are accepted."""

from __future__ import annotations

import io
import json
import os
import select
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from and_dist.commands.own_images import choose_config
from and_dist.config.comparison import differing_keys, keep_choices
from and_dist.config.load import load_config, parse_overrides
from and_dist.config.reference import describe_keys
from and_dist.config.schema import Config
from and_dist.config.validation import flatten
from and_dist.data import survey as survey  # imported before the forks are made
from and_dist.distributed.watchdog import SECONDS_BEYOND_STALL
from and_dist.planning.catalogue import find_hardware
from and_dist.planning.plan import plan_job
from and_dist.planning.printout import as_plain, show
from and_dist.planning.workload import Size as JobSize
from and_dist.runs.folder import check_run_folder, config_of, keep_choices_of_run
from and_dist.runs.schedule import Schedule
from and_dist.runs.shown_config import shown_config
from and_dist.utils.progress import NoReport
from launcher import submit
from launcher.jobs.cluster_profile import Profile, load_profile
from launcher.jobs.request import Size, load_run
from launcher.sweep import load_members, load_sweep

LONGEST_MESSAGE = 6000
MOST_MEMBERS = 20
"""The members of a sweep that are prepared one by one; more are only counted."""


def attempt(given: dict[str, Any]) -> str:
    """Carry out an attempt in its folder; return what it broke, or ""."""
    return judge(given, DOORS[given["how"]])


def judge(given: dict[str, Any], door: Callable[[dict[str, Any]], None]) -> str:
    """Return what broke while a door was given something, or ""."""
    os.chdir(given["folder"])
    try:
        door(given)
    except ValueError as error:
        said = str(error)
        if given.get("wanted") == "accepted":
            return f"it was refused: {said[:300]}"
        if not 0 < len(said) <= LONGEST_MESSAGE:
            return f"the message has {len(said):,} characters"
        missing = [part for part in given.get("says", ()) if part not in said]
        return f"the message does not name {missing[0][:60]!r}: {said[:300]!r}" if missing else ""
    except Broken as error:
        return str(error)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"{type(error).__name__} at {where}: {str(error)[:200]}"
    return "it was accepted" if given.get("wanted") == "refused" else ""


class Broken(Exception):
    """Says what an accepted config is not fit for."""


def use(config: Config, given: dict[str, Any]) -> None:
    """Do with a config, without torch, what the program does with it; raise Broken."""
    dumped = config.model_dump(mode="json")
    flat = flatten(dumped)
    for key, value in given.get("kept", {}).items():
        found = flat[key]
        if isinstance(found, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise Broken(f"{key} = {value!r} was taken for {found!r}")
    json.dumps(dumped, allow_nan=False)
    Path("dumped.yaml").write_text(yaml.safe_dump(dumped, sort_keys=False), encoding="utf-8")
    if load_config(["dumped.yaml"]) != config:
        raise Broken("what is written is read as another config")
    if differing_keys(config, dumped):
        raise Broken("it differs from itself")
    keep_choices(config, dumped, was_on_gpu=True)
    shown_config(config)
    assert str(config.folder)
    wait_for(config)
    schedule_of(config)
    plan(config)
    check_run_folder(config)


def wait_for(config: Config) -> None:
    """Hand the durations of a config to all that waits so long, where nothing has to be awaited."""
    limit = config.run.time_limit_seconds
    lock = threading.Lock()
    ours, theirs = os.pipe()
    os.close(theirs)
    for seconds in (config.run.stall_seconds, 60 * config.run.save_minutes, limit or 1.0):
        if seconds != seconds or seconds < 0:
            raise Broken(f"{seconds} s is no duration")
    for seconds in (config.run.stall_seconds, limit or 1.0):
        timedelta(seconds=seconds + SECONDS_BEYOND_STALL)
        lock.acquire(timeout=seconds)
        lock.release()
        select.select([ours], [], [], seconds)


def schedule_of(config: Config) -> None:
    """Count epochs and steps, of which a step's record tells."""
    epochs = tuple(map(config.epochs_of, range(config.last_round + 1)))
    schedule = Schedule(epochs, 10**9)
    assert sum(epochs) == config.num_epochs
    last = config.last_round
    schedule.place_of({"round": last, "epoch": 0, "step": schedule.steps_before(last)})
    if schedule.total_steps >= 2**63:
        raise Broken("there are more steps than an int64 counts")


def plan(config: Config) -> None:
    """Plan the run on CPUs and on GPUs."""
    for size, hardware in ((JobSize(1, 2), "cpu"), (JobSize(2, 8), "a100")):
        planned = plan_job(config, size, find_hardware(hardware), 50_000)
        assert planned is not None
        json.dumps(as_plain(planned), allow_nan=False)
        show(planned, Console(file=io.StringIO(), width=120))


def through_config(given: dict[str, Any]) -> None:
    """Load files and overrides."""
    use(load_config(given["names"], given["overrides"]), given)


def through_run(given: dict[str, Any]) -> None:
    """Open somebody's run folder."""
    use(config_of(Path("run"), given["overrides"]), given)


def through_earlier_run(given: dict[str, Any]) -> None:
    """Resume a run whose config is no longer as it was written."""
    config = load_config(["demo"], ["run.root=.", "name=run", *given["overrides"]])
    check_run_folder(config)
    keep_choices_of_run(config)


def through_sweep(given: dict[str, Any]) -> None:
    """Prepare the runs of a sweep."""
    sweep = load_sweep(Path(given["names"][0]))
    if len(sweep.members) <= MOST_MEMBERS:
        for run in load_members(sweep, Profile(), Size()):
            use(run.config, {})


def through_profile(given: dict[str, Any]) -> None:
    """Prepare a job of a cluster."""
    show_job(load_profile(Path(given["names"][0])), Size())


def through_size(given: dict[str, Any]) -> None:
    """Prepare a job of a size."""
    show_job(Profile(), Size(**given["size"]))


def show_job(profile: Profile, size: Size) -> None:
    """Show the batch script of a job."""
    run = submit.prepare(["demo"], ["run.root=.", "name=job"], profile, size)
    submit.describe_dry(run, None)


def through_proposal(given: dict[str, Any]) -> None:
    """Propose a config for images under a user's overrides, as train and init do."""
    use(choose_config([], "photos", given["overrides"], NoReport()).config, {})


def through_request(given: dict[str, Any]) -> None:
    """Check files and overrides as and-launch does."""
    use(load_run(given["names"], given["overrides"]), given)


def through_hardware(given: dict[str, Any]) -> None:
    """Read measured hardware."""
    find_hardware(given["names"][0])


def through_reference(given: dict[str, Any]) -> None:
    """Describe a key."""
    with suppress(UnicodeEncodeError):
        describe_keys(given["overrides"][0])


def through_overrides(given: dict[str, Any]) -> None:
    """Parse overrides alone."""
    flatten(parse_overrides(given["overrides"]))


DOORS: dict[str, Callable[[dict[str, Any]], None]] = {
    "config": through_config,
    "run": through_run,
    "earlier run": through_earlier_run,
    "sweep": through_sweep,
    "profile": through_profile,
    "size": through_size,
    "proposal": through_proposal,
    "request": through_request,
    "hardware": through_hardware,
    "reference": through_reference,
    "overrides": through_overrides,
}
