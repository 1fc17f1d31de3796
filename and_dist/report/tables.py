"""Collect finished runs into tables beside the paper's figures (`and-dist table RUN...`).

Accuracies are means over seeds. No torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from and_dist.config.comparison import PATHS, SPEED_ONLY_KEYS, TEST_KEYS, is_among
from and_dist.config.paper_figures import FIGURES, TITLES
from and_dist.config.validation import flatten
from and_dist.runs.folder import config_of
from and_dist.runs.records import Summary, read_evaluation, read_record

NOT_OF_A_KIND = (*SPEED_ONLY_KEYS, "paper", "evaluation.every", "evaluation.baselines")
"""The keys and sections in which runs of one kind may differ."""
LABELS = {"knn": "kNN"}
"""The name of a figure of the paper -> the name of the same figure of a run."""
BY_TRAINING = {"knn_bank": "bank-kNN", "knn": "kNN"}
"""A key of summary.json -> the name of the figure."""
EVALUATIONS = ("knn", "linear", "linear-ten-crop")
"""The files that `and-dist evaluate` writes, without their suffix."""
AS_PRINTED = ", as printed"
"""The remark on a row of runs with preset=paper."""
BY_COMMAND = {"bank": "bank-kNN", "recomputed": "kNN"}
"""A key of these files -> the name of the figure."""


@dataclass(frozen=True)
class Run:
    """Hold the config and the top-1 accuracies of a finished run."""

    folder: Path
    config: Mapping[str, Any]
    """The flat config, such as {"optim.lr": 0.03, ...}."""
    top1: Mapping[str, float]
    """The name of a figure -> top-1 accuracy in %."""
    notes: Sequence[str] = ()
    """Sentences about results that are left out."""


@dataclass(frozen=True)
class Figure:
    """Hold one accuracy of all runs of a kind, one value for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation over seeds, or None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Kind:
    """Hold runs that differ only in their seeds."""

    folder: Path
    """The folder of the first run."""
    config: Mapping[str, Any]
    """The flat config of the first run."""
    paper: Sequence[str]
    """The places in the paper's tables that any of the runs reproduces."""
    figures: Mapping[str, Figure]

    @property
    def is_literal(self) -> bool:
        """Return whether it was trained as the paper is printed, and not by its authors' recipe."""
        return bool(self.config["preset"] == "paper")


@dataclass
class Cell:
    """Hold the content of one cell of a table: the paper's figure, ours, or both."""

    published: float | None = None
    here: Figure | None = None


@dataclass
class Sheet:
    """Hold a table; a column is a data set and a way to measure the accuracy."""

    title: str
    columns: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def at(self, row: str, column: str) -> Cell:
        """Return the cell at a row and column, which are added if they are new."""
        if column not in self.columns:
            self.columns.append(column)
        return self.rows.setdefault(row, {}).setdefault(column, Cell())


@dataclass(frozen=True)
class Collection:
    """Hold all tables and the notes below them."""

    sheets: list[Sheet]
    notes: list[str]
    """Sentences about runs that are left out and about the protocol."""


def collect(folders: Sequence[Path]) -> Collection:
    """Read the runs in the given folders and arrange them in tables.

    Raise ValueError if no run has finished or two runs are the same.
    """
    found, notes = find_runs(folders)
    runs: list[Run] = []
    for folder in found:
        try:
            run = read_run(folder)
        except (OSError, ValueError) as error:
            run = f"{folder} is left out: {error}."
        if isinstance(run, str):
            notes.append(run)
            continue
        runs.append(run)
        notes += run.notes
    if not runs:
        raise ValueError(f"there is no finished run: {' '.join(notes)}")
    return arrange(runs, notes)


def arrange(runs: Sequence[Run], notes: Iterable[str] = ()) -> Collection:
    """Arrange runs in tables; raise ValueError if two of them are the same."""
    kinds = group_by_kind(runs)
    protocols = sorted(
        {(k.config["evaluation.knn"], k.config["evaluation.knn_temperature"]) for k in kinds}
    )
    said = "; ".join(f"K {knn}, tau {tau}" for knn, tau in protocols)
    protocol = (
        f"Top-1 %, mean and standard deviation over seeds. kNN by recomputed features, bank-kNN by "
        f"the bank ({said}); the last checkpoint, none chosen by its accuracy."
    )
    return Collection([*_paper_sheets(kinds), *_own_sheets(kinds)], [*notes, protocol])


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return (run folders, notes about folders that hold no run).

    A folder may be a run or the folder of a sweep, whose runs lie in it.
    """
    found: list[Path] = []
    notes: list[str] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("*/config.yaml"))
        if (folder / "config.yaml").exists():
            found.append(folder)
        elif inside:
            found += inside
        else:
            notes.append(f"{folder} is no run folder, and none lies in it: no config.yaml.")
    return found, notes


def read_run(folder: Path) -> Run | str:
    """Read a finished run; return a sentence instead if it has not finished."""
    config = config_of(folder)
    file = folder / "summary.json"
    rounds = read_record(file, Summary)["rounds"] if file.exists() else []
    ended = max((r["round"] + 1 for r in rounds), default=0)
    if ended <= config.last_round:
        return (
            f"{folder} is left out: it has ended {ended} of {config.last_round + 1} rounds"
            f"{'' if rounds else ', as it has no summary.json'}."
        )
    last = rounds[-1]
    flat = flatten(config.model_dump(mode="json"))
    top1 = {name: last[key] for key, name in BY_TRAINING.items() if last[key] is not None}
    notes = []
    final = f"r{config.last_round:02}-e{config.epochs_of(config.last_round):04}"
    for kind in EVALUATIONS:
        file = folder / "evaluation" / final / f"{kind}.json"
        evaluated = read_evaluation(file) if file.exists() else None
        if evaluated is None:
            continue
        others = [key for key in TEST_KEYS if evaluated.get(key) != flat[f"data.{key}"]]
        if others:
            notes.append(f"{file} is left out: it was measured at another data.{others[0]}.")
            continue
        top1 |= _top1_of(evaluated, flat)
    return Run(folder, flat, {name: 100 * share for name, share in top1.items()}, notes)


def _top1_of(evaluated: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """Return top-1 shares by name.

    The name tells each key of the protocol whose value differs from the run's config.
    """
    protocol = flatten(evaluated["protocol"], "evaluation.")
    otherwise = [
        f"{key.removeprefix('evaluation.').removeprefix('linear.')}={value}"
        for key, value in protocol.items()
        if config.get(key) != value
    ]
    crops = ["ten crops"] if evaluated.get("ten_crop") else []
    return {
        ", ".join([BY_COMMAND.get(name, f"linear {name}"), *crops, *otherwise]): figures["top1"]
        for name, figures in evaluated["of"].items()
    }


def group_by_kind(runs: Sequence[Run]) -> list[Kind]:
    """Group runs that differ only in their seeds, in the order of the first run of each kind.

    Raise ValueError if two runs of a kind have the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_common(run.config), sort_keys=True), []).append(run)
    kinds = []
    for group in groups.values():
        by_seed: dict[int, Run] = {}
        for run in group:
            twin = by_seed.setdefault(run.config["seed"], run)
            if twin is not run:
                raise ValueError(
                    f"{twin.folder} and {run.folder} are the same run, seed {run.config['seed']} "
                    "included: give one of them"
                )
        names = dict.fromkeys(name for run in group for name in run.top1)
        figures = {n: Figure(tuple(r.top1[n] for r in group if n in r.top1)) for n in names}
        paper = dict.fromkeys(place for run in group for place in run.config["paper"])
        kinds.append(Kind(group[0].folder, group[0].config, tuple(paper), figures))
    return kinds


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that is equal for all runs of a kind.

    Data sets of the paper count by their names, since their paths differ between machines. Other
    data sets count by their paths.
    """
    common = {key: value for key, value in config.items() if not is_among(key, NOT_OF_A_KIND)}
    if sets := sorted({place.split("/")[2] for place in config["paper"]}):
        common |= dict.fromkeys(PATHS, sets)
    return common


def _paper_sheets(kinds: Sequence[Kind]) -> list[Sheet]:
    """Return the paper's tables that some run belongs to, with the paper's rows and columns.

    Raise ValueError if two kinds stand for the same place of a table.
    """
    ours: dict[tuple[str, bool], Kind] = {}
    for kind in kinds:
        for place in kind.paper:
            other = ours.setdefault((place, kind.is_literal), kind)
            if other is not kind:
                keys = _differing(kind, other)
                raise ValueError(
                    f"{other.folder} and {kind.folder} both stand for {place}, and differ in "
                    f"{', '.join(keys)}: give one of them"
                )
    sheets = []
    for where, title in TITLES.items():
        places = [place for place in FIGURES if place.startswith(f"{where}/")]
        if not any((place, is_literal) in ours for place in places for is_literal in (False, True)):
            continue
        sheet = Sheet(f"{where.capitalize()}: {title}")
        names = dict.fromkeys(name for place in places for name in FIGURES[place])
        for place in places:
            _fill(sheet, place, names, ours.get((place, False)), "")
            if (place, True) in ours:
                _fill(sheet, place, names, ours[place, True], AS_PRINTED)
        sheets.append(sheet)
    return sheets


def _fill(sheet: Sheet, place: str, names: Iterable[str], kind: Kind | None, remark: str) -> None:
    """Put the paper's figures of a place, and those of a kind, into a row of a table."""
    _, row, column = place.split("/")
    for name in names:
        published = FIGURES[place].get(name)
        label = LABELS.get(name, name)
        here = kind.figures.get(label) if kind is not None else None
        if published is not None or here is not None:
            cell = sheet.at(row + remark, f"{column} {label}")
            cell.published, cell.here = published, here


def _own_sheets(kinds: Sequence[Kind]) -> list[Sheet]:
    """Return a table for each data set of the runs with figures that the paper's tables lack.

    Rows are named by the keys in which the runs differ.
    """
    own = [kind for kind in kinds if kind.figures.keys() - _names_in_paper(kind)]
    sheets = []
    for data in dict.fromkeys(_data_of(kind) for kind in own):
        group = [kind for kind in own if _data_of(kind) == data]
        sheet = Sheet(
            f"{data}, {', '.join(dict.fromkeys(k.config['encoder.name'] for k in group))}"
        )
        for row, kind in zip(name_rows(group), group, strict=True):
            for name, figure in kind.figures.items():
                sheet.at(row, name).here = figure
        sheets.append(sheet)
    return sheets


def _names_in_paper(kind: Kind) -> set[str]:
    """Return the names of all figures in the paper's tables that a run belongs to."""
    wheres = {place.split("/")[0] for place in kind.paper}
    places = (place for place in FIGURES if place.split("/")[0] in wheres)
    return {LABELS.get(name, name) for place in places for name in FIGURES[place]}


def name_rows(kinds: Sequence[Kind]) -> list[str]:
    """Name each row by its method and by every key whose value is not the most common one."""
    all_of_them = dict.fromkeys(key for kind in kinds for key in kind.config)  # options differ
    keys = [key for key in all_of_them if key != "method" and not is_among(key, NOT_OF_A_KIND)]
    values = {key: [json.dumps(kind.config.get(key)) for kind in kinds] for key in keys}
    usual = {key: Counter(of).most_common(1)[0][0] for key, of in values.items()}
    rows = []
    for at, kind in enumerate(kinds):
        others = [f"{key}={values[key][at]}" for key in keys if values[key][at] != usual[key]]
        rows.append(", ".join([kind.config["method"], *others]))
    return rows


def _differing(one: Kind, other: Kind) -> list[str]:
    """Return the keys in which two kinds differ, with both values."""
    keys = dict.fromkeys([*one.config, *other.config])
    return [
        f"{key} ({one.config.get(key)}, {other.config.get(key)})"
        for key in keys
        if one.config.get(key) != other.config.get(key) and not is_among(key, NOT_OF_A_KIND)
    ]


def _data_of(kind: Kind) -> str:
    """Return the training images of a kind and their limit as text."""
    limit = kind.config["data.limit"]
    return str(kind.config["data.train"]) + (f" (first {limit:,})" if limit else "")
