"""Run a grid or a list of overrides as one job array, and show its runs in a table.

    name: neighbours
    config: [configs/demo.yaml]
    overrides: [run.save_minutes=5]       # of every run
    grid: {curriculum.neighbours: [1, 10], seed: [0, 1, 2]}
    runs: [{}, {curriculum.rounds: 1}]    # each of them at every point of the grid
    parallel: 4

Each run lies in ROOT/NAME/ under a name made of its varied keys and values. A second submission
takes only the runs that are missing.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field
from rich.console import Console
from rich.table import Table

from and_dist.config.load import load_config
from and_dist.config.validation import NAME, Section, build
from and_dist.config.yaml_files import read_yaml
from and_dist.runs.folder import write_config
from and_dist.runs.records import Summary, parse, read_if_sound
from and_dist.utils.owned_files import check_file, make_folder, read_json, write_file
from and_dist.utils.plain_files import read_plain
from launcher import submit
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import job_folders, new_job_folder, read_ends, take_snapshot
from launcher.jobs.request import Size
from launcher.slurm import client, sbatch
from launcher.status import is_active, look_at
from launcher.submit import RunSpec, warnings_of

Value = bool | int | float | str | None | list[Any] | dict[str, Any]
Settings = dict[str, Value]
"""Values by key, with dots."""
POLL_SECONDS = 5.0
MOST_RUNS = 10_000
"""The most runs of a sweep; SLURM takes 1,001 in an array where nobody has set another number."""
LONGEST_VALUE = 1_000_000
"""Letters of a value on one line."""
THIS_PROGRAM = (sys.executable, "-m", "launcher")
"""The command that runs `and-launch`, wherever the shell stands."""
LIST = "sweep.json"
"""The file in a sweep's folder that lists its runs."""
NAMED_BY = "name"
"""The key of a run's settings that holds a name for them."""
NOT_NAMED = ("paper",)
"""Keys that are left out of a run's name: they describe the run, not its difference from others."""


class Sweep(Section):
    """Hold the content of a sweep file."""

    name: Annotated[str, Field(pattern=NAME)]
    config: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    """key=value settings of every run."""
    grid: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Values by key; every combination of them is run."""
    runs: tuple[Settings, ...] = ()
    """Settings, each of which is run at every combination of the grid. `name` among them is a name
    for all of them."""
    parallel: Annotated[int, Field(ge=1, le=MOST_RUNS)] = 4
    """The largest number of runs at once."""

    @property
    def num_members(self) -> int:
        """Return the number of runs, without making them."""
        if not (self.grid or self.runs):
            return 0
        return math.prod(map(len, self.grid.values())) * (len(self.runs) or 1)

    @property
    def members(self) -> list[tuple[Settings, Settings]]:
        """Return of every run what names it, and its varied settings: the same unless some have a
        name."""
        if not (self.grid or self.runs):
            return []
        points = [dict(zip(self.grid, p, strict=True)) for p in product(*self.grid.values())]
        return [_member(point, run) for point in points for run in self.runs or ({},)]


def load_sweep(path: Path) -> Sweep:
    """Return the sweep in a file; raise ValueError if it names no runs or too many."""
    loaded = build(Sweep, read_yaml(path), f"{path}: ")
    if not loaded.num_members:
        raise ValueError(f"{path} names no runs: give grid or runs")
    if loaded.num_members > MOST_RUNS:
        raise ValueError(
            f"{path} names {loaded.num_members:,} runs by its grid and runs; the most are "
            f"{MOST_RUNS:,}"
        )
    return loaded


def _member(point: Settings, run: Settings) -> tuple[Settings, Settings]:
    """Return what names a run of a point of the grid, and its settings."""
    if NAMED_BY not in run:
        return point | run, point | run
    own = {key: value for key, value in run.items() if key != NAMED_BY}
    return {**point, NAMED_BY: run[NAMED_BY]}, point | own


def name_of(member: Mapping[str, Value]) -> str:
    """Return a run's name from the last parts of its keys and its values, like
    neighbours-10_seed-0."""
    parts = [
        _in_a_name(value) if key == NAMED_BY else f"{key.rpartition('.')[2]}-{_in_a_name(value)}"
        for key, value in member.items()
        if key not in NOT_NAMED
    ]
    return "_".join(parts) or "run"


def _in_a_name(value: Value) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", _as_yaml(value)).strip("-.")


def load_members(sweep: Sweep, profile: Profile, size: Size) -> list[RunSpec]:
    """Return every run after all checks; raise ValueError with the name of a run that fails
    them."""
    names = Counter(name_of(member) for member, _ in sweep.members)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise ValueError(f"sweep {sweep.name}: two runs would be called {twice[0]}")
    wanted = []
    root = _root(sweep)
    for member, settings in sweep.members:
        name = name_of(member)
        own = [f"{key}={_as_yaml(value)}" for key, value in settings.items()]
        where = [f"name={name}", f"run.root={root / sweep.name}"]
        try:
            run = submit.prepare(sweep.config, [*sweep.overrides, *own, *where], profile, size)
        except ValueError as error:
            raise ValueError(f"sweep {sweep.name}, run {name}: {error}") from None
        wanted.append(run)
    return wanted


def device_of(file: Path) -> str:
    """Return the run.device that the runs of a sweep have in common."""
    sweep = load_sweep(file)
    return load_config(sweep.config, sweep.overrides).run.device


def _root(sweep: Sweep) -> Path:
    return Path(load_config(sweep.config, sweep.overrides).run.root)


def _as_yaml(value: Value) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=LONGEST_VALUE)
    return text.removesuffix("...\n").strip()


@dataclass(frozen=True)
class Way:
    """Say what becomes of the missing runs of a sweep."""

    is_here: bool = False
    """True if they are run on this machine, one after the other, and not by SLURM."""
    is_dry: bool = False
    """True if they are only shown."""
    follows: bool = False
    """True if the table is shown once all runs are over."""
    options: tuple[str, ...] = ()
    """The options of `and-launch local` that give a single run the same size and profile."""


def run_sweep(
    file: Path, profile: Profile, size: Size, way: Way, say: Callable[[str], None]
) -> int:
    """Submit, run or only show the missing runs of a sweep; return exit code 0 if nothing failed.

    Where all runs are waited for, exit code 1 means that one is not finished.
    """
    sweep = load_sweep(file)
    members = load_members(sweep, profile, size)
    folder = _root(sweep) / sweep.name
    check_file(folder / LIST, is_list)
    if not (way.is_here or way.is_dry):
        client.check_slurm()
    missing = [run for run in members if not _is_done(run) and _not_on_its_way(run)]
    at_once = 1 if way.is_here else sweep.parallel
    say(f"{sweep.name}: {len(members)} runs, {len(missing)} to do, {at_once} at once")
    _say_warnings(missing, say)
    if way.is_dry:
        _show(folder, sweep, missing, way, say)
        return 0
    if missing and not way.is_here:
        with submit.all_or_nothing(folder, *(run.config.folder for run in missing)) as made:
            _write_list(folder, sweep)
            ids = _submit(folder, sweep, missing, made)
        say(f"job {ids[0].partition('_')[0]}: submitted, {len(ids)} run(s)")
        say(f"  table  and-launch status {folder}")
    else:
        _write_list(folder, sweep)
    if way.is_here:
        _run_all_here(missing, say)
    if way.follows or way.is_here:
        while not way.is_here and any(_may_be_active(run) for run in members):
            time.sleep(POLL_SECONDS)
        say(table_of(folder))
        return 0 if all(_is_done(run) for run in members) else 1
    return 0


def _say_warnings(missing: Sequence[RunSpec], say: Callable[[str], None]) -> None:
    """Say each warning once, with the number of runs that it is about."""
    for warning, count in Counter(line for run in missing for line in warnings_of(run)).items():
        say(f"{warning} ({count} of the runs)")


def _show(
    folder: Path, sweep: Sweep, missing: Sequence[RunSpec], way: Way, say: Callable[[str], None]
) -> None:
    """Show the names of the missing runs with the script that would be submitted, or commands.

    A command does for one run what the sweep would do on this machine.
    """
    for run in missing:
        if way.is_here:
            say(f"# {run.config.name}")
            say(shlex.join([*THIS_PROGRAM, "local", *run.given, *way.options]))
        else:
            say(f"  {run.config.name}")
    if missing and not way.is_here:
        say(_dry_script(folder, sweep, missing))


def _is_done(run: RunSpec) -> bool:
    return (run.config.folder / "summary.json").exists()


def _not_on_its_way(run: RunSpec) -> bool:
    return is_active(run.config.folder) is None


def _may_be_active(run: RunSpec) -> bool:
    try:
        return is_active(run.config.folder) is not None
    except RuntimeError:  # SLURM does not answer at the moment
        return True


def _write_list(folder: Path, sweep: Sweep) -> None:
    """Write the list of runs for the table; runs of earlier versions of the sweep file stay in
    it."""
    make_folder(folder)
    known = read_list(folder) if (folder / LIST).exists() else {}
    known |= {name_of(member): member for member, _ in sweep.members}
    write_file(folder / LIST, json.dumps(known, indent=1), is_list)


def _submit(folder: Path, sweep: Sweep, missing: Sequence[RunSpec], made: list[Path]) -> list[str]:
    whole = new_job_folder(folder.absolute(), made)
    take_snapshot(whole / "code", missing[0].profile.secrets)
    jobs = []
    for run in missing:
        job = new_job_folder(run.config.folder.absolute(), made)
        submit.fill(job, run, whole / "code")
        write_config(run.config, run.config.folder)
        jobs.append(job)
    request = missing[0].request(whole, whole / "code")
    ids = sbatch.submit_array(whole, jobs, request, sweep.name, sweep.parallel)
    submit.refuse_what_never_starts(ids[0].partition("_")[0], request)
    return ids


def _dry_script(folder: Path, sweep: Sweep, missing: Sequence[RunSpec]) -> str:
    runs = [folder, *(run.config.folder for run in missing)]
    whole, *jobs = [run.absolute() / "jobs" / "NEXT" for run in runs]
    request = missing[0].request(whole, whole / "code")
    return submit.dry_script(jobs, request, sweep.name, parallel=sweep.parallel)


def _run_all_here(missing: Sequence[RunSpec], say: Callable[[str], None]) -> None:
    from launcher.local import run_here

    for number, run in enumerate(missing, 1):
        say(f"{number} of {len(missing)}: {run.config.name}")
        end = run_here(submit.write_down(run, has_time_limit=True))
        say(f"and-launch: {end.state}, {end.why}")
        if end.state == "stopped":
            return


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep."""
    return is_list(folder / LIST)


def is_list(path: Path) -> bool:
    """Recognise the list of a sweep: every run has the name that its settings give."""
    found = read_json(path)
    return isinstance(found, dict) and all(
        isinstance(member, dict) and name == name_of(member) for name, member in found.items()
    )


def read_list(folder: Path) -> dict[str, dict[str, Value]]:
    """Return the varied settings of each run of a sweep, by its name."""
    return dict(parse(read_plain(folder / LIST)))


def table_of(folder: Path) -> str:
    """Return a table of all runs: varied settings, state, last kNN accuracies and minutes."""
    members = read_list(folder)
    keys = list(dict.fromkeys(key for member in members.values() for key in member))
    table = Table(title=folder.name, title_justify="left")
    for key in keys:
        table.add_column(key.rpartition(".")[2])
    for column in ("state", "bank-kNN %", "kNN %", "minutes"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, member in members.items():
        varied = [_as_yaml(member[key]) if key in member else "-" for key in keys]
        table.add_row(*varied, *_results(folder / name))
    console = Console(width=120, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _results(run: Path) -> tuple[str, ...]:
    summary = run / "summary.json"
    found = read_if_sound(summary, Summary) if summary.exists() else None
    if not found or not found["rounds"]:
        return _state(run), "-", "-", "-"
    last = found["rounds"][-1]
    figures = [
        "-" if last[key] is None else f"{100 * last[key]:.1f}" for key in ("knn_bank", "knn")
    ]
    return "finished", *figures, f"{found['seconds'] / 60:.1f}"


def _state(run: Path) -> str:
    if not (run / "config.yaml").exists():
        return "not submitted"
    jobs = job_folders(run)
    ends = list(read_ends(jobs[-1])) if jobs else []
    state = look_at(run).state
    return f"{state} ({ends[-1].why})" if ends and state == "failed" else state
