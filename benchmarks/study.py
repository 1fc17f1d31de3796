"""Compare the runs of a sweep with the paper's expectations, seed by seed, and keep their curves.

python -m benchmarks.study runs/fashion+runs/fashion-ablations runs/fashion-long --json FILE

Runs in FILE that are no longer on this machine are kept in it, and take part in the comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from and_dist.config.schema import Config
from and_dist.config.validation import flatten
from and_dist.report.render_tables import as_csv, as_markdown
from and_dist.report.tables import Run, arrange, find_runs, read_run
from and_dist.runs.folder import read_starts
from and_dist.runs.metrics_file import read_metrics
from benchmarks.common.harness import describe_machine

Values = dict[int, float]
"""Figures by seed."""
AND = {
    "preset": "code",
    "method": "and",
    "curriculum.neighbours": 1,
    "curriculum.rounds": 4,
    "curriculum.share": None,
    "curriculum.start": "instance",
    "encoder.name": "small",
    "encoder.init": "pytorch",
    "optim.name": "sgd",
    "optim.batch_size": 64,
    "bank.update_rate": 0.5,
}
"""The settings of AND in the study, which all that are compared differ from."""
RESNET = {"encoder.name": "resnet18"}
LARGE = {"optim.batch_size": 1024}
LARS = {**LARGE, "optim.name": "lars"}
VIT = {"encoder.name": "timm/vit_tiny_patch16_224", "optim.name": "adamw"}
CONVNEXT = {"encoder.name": "timm/convnext_atto", "optim.name": "adamw"}
COMPARED: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("AND above instance learning", {}, {"method": "instance"}),
    ("the curriculum above one-off discovery", {}, {"curriculum.rounds": 1}),
    ("an instance start above a random one", {}, {"curriculum.start": "random"}),
    *((f"k = 1 above k = {k}", {}, {"curriculum.neighbours": k}) for k in (5, 10, 50)),
    ("AND above DeepCluster", {}, {"method": "deepcluster"}),
    ("AND above NAT", {}, {"method": "nat"}),
    ("AND above the untrained network", {}, {"method": "random"}),
    ("the code's recipe above the paper as printed", {}, {"preset": "paper"}),
    ("all rows as anchors at the end above half of them", {}, {"curriculum.share": 0.125}),
    (
        "PyTorch's first weights above those by fan-out",
        RESNET,
        {**RESNET, "encoder.init": "he_fan_out"},
    ),
    (
        "AND from a random start above instance learning of its epochs and falls",
        {"curriculum.start": "random"},
        {"method": "instance", "curriculum.rounds": 3},
    ),
    ("a batch of 64 above one of 256", {}, {"optim.batch_size": 256}),
    ("a batch of 64 above one of 1,024", {}, LARGE),
    ("a batch of 64 above one of 1,024 by LARS", {}, LARS),
    ("LARS above SGD at a batch of 1,024", LARS, LARGE),
    *(
        (
            f"eta 0.5 above {eta} at a batch of 1,024 by LARS",
            LARS,
            {**LARS, "bank.update_rate": eta},
        )
        for eta in (0.25, 1.0)
    ),
    *(
        (f"R = 4 above {r} at a batch of 1,024 by LARS", LARS, {**LARS, "curriculum.rounds": r})
        for r in (1, 9)
    ),
    ("SGD above LARS at a batch of 64", {}, {"optim.name": "lars"}),
    ("small above a ViT", {}, VIT),
    ("small above a ConvNeXt", {}, CONVNEXT),
)
"""Pairs of settings, and the expectation that the first are above the second."""
DEFAULTS = flatten(Config().model_dump(mode="json"))
ROUND_KEYS = ("round", "anchors", "consistency", "knn_bank", "knn")
DISCOVERY_KEYS = (
    "round",
    "anchors",
    "consistent",
    "inconsistent",
    "consistency_by_entropy",
    "kept",
)
Record = dict[str, Any]
"""The kept record of a run: config, revisions, ranks, top-1 figures, losses, rounds,
discoveries."""
DEPTH_OF_RUNS = 4
"""The nesting of a run in the file: studies, a study, its runs, the run."""


@dataclass(frozen=True)
class Expectation:
    """State that the paper expects the first figure to be larger than the second, whatever the
    seed."""

    says: str
    larger: Values
    smaller: Values

    def differences(self) -> Values:
        """Return larger - smaller for the seeds that both have."""
        return {s: self.larger[s] - self.smaller[s] for s in self.larger if s in self.smaller}

    def in_one_line(self) -> str:
        """Return the mean difference, those of all seeds, and how many seeds agree."""
        found = self.differences()
        held = sum(value > 0 for value in found.values())
        mean = statistics.fmean(found.values())
        by_seed = ", ".join(f"{value:+.1f}" for value in found.values())
        return f"{self.says}: {mean:+.1f} points ({by_seed}), in {held} of {len(found)} seeds"


def expectations(runs: Sequence[Record]) -> list[Expectation]:
    """Return the expectations that the runs have figures for."""
    names = dict.fromkeys(name for run in runs for name in run["top1"])
    found = [e for name in names for e in _of_accuracy(runs, name)] + _of_consistency(runs)
    return [expectation for expectation in found if expectation.differences()]


def _of_accuracy(runs: Sequence[Record], name: str) -> list[Expectation]:
    """Return the expectations on one of the runs' accuracies."""

    def of(changed: Mapping[str, Any]) -> Values:
        return _by_seed(runs, lambda run: run["top1"].get(name), changed)

    return [Expectation(f"{says}, {name}", of(high), of(low)) for says, high, low in COMPARED]


def _of_consistency(runs: Sequence[Record]) -> list[Expectation]:
    def of(figure: Callable[[Record], float | None]) -> Values:
        return _by_seed(runs, figure, {})

    rounds = [
        Expectation(
            f"round {at + 1}'s anchors more consistent than the last round's",
            of(partial(_consistency, at=at)),
            of(partial(_consistency, at=-1)),
        )
        for at in (0, 1)
    ]
    entropies = [
        Expectation(
            f"all rows anchors: the {label} of lowest entropy more consistent than of highest",
            of(partial(_by_entropy, part=slice(count))),
            of(partial(_by_entropy, part=slice(-count, None))),
        )
        for count, label in ((1, "tenth"), (3, "three tenths"))
    ]
    return rounds + entropies


def _by_seed(
    runs: Sequence[Record],
    figure: Callable[[Record], float | None],
    changed: Mapping[str, Any],
) -> Values:
    """Return a figure by seed, of AND's runs, or of those with some keys changed."""
    wanted = {**AND, **changed}
    chosen = [run for run in runs if _is_like(run["config"], wanted)]
    found = {run["config"]["seed"]: figure(run) for run in chosen}
    assert len(found) == len(chosen), f"two runs of a seed are like {wanted}"
    return {seed: value for seed, value in found.items() if value is not None}


def _is_like(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    # A run of an earlier revision, which lacked a key, had its present default.
    return all(config.get(key, DEFAULTS[key]) == value for key, value in wanted.items())


def _consistency(run: Record, at: int) -> float | None:
    found = run["discoveries"]
    pairs = found[at]["consistent"] + found[at]["inconsistent"] if found else 0
    return 100 * found[at]["consistent"] / pairs if pairs else None


def _by_entropy(run: Record, part: slice) -> float | None:
    """Return the mean consistency of a part of the last round, in which all rows are anchors, in
    percent."""
    found = run["discoveries"]
    return 100 * statistics.fmean(found[-1]["consistency_by_entropy"][part]) if found else None


def record_of(run: Run) -> Record:
    """Return the record of one run: settings, losses, rounds, discoveries."""
    metrics = run.folder / "metrics.jsonl"
    rounds, found = read_metrics(metrics, "round"), read_metrics(metrics, "discovery")
    starts = read_starts(run.folder)
    return {
        "revisions": sorted({str(start["revision"]) for start in starts}),
        "ranks": sorted({start["world_size"] for start in starts}),
        "config": {k: v for k, v in run.config.items() if not k.startswith("run.")},
        "top1": dict(run.top1),
        "losses": [round(record["loss"], 4) for record in read_metrics(metrics, "epoch")],
        "rounds": [{key: record[key] for key in ROUND_KEYS} for record in rounds],
        "discoveries": [{key: record[key] for key in DISCOVERY_KEYS} for record in found],
        "seconds": sum(record["seconds"] for record in rounds),
    }


def read_study(folders: Sequence[Path], kept: Mapping[str, Record]) -> dict[str, Record]:
    """Return records by FOLDER/RUN: the kept ones, replaced by those of runs that are finished
    here."""
    found = dict(kept)
    for folder in find_runs(folders)[0]:
        run = read_run(folder)
        if isinstance(run, Run):
            found[f"{folder.parent.name}/{folder.name}"] = record_of(run)
    return dict(sorted(found.items()))


def with_a_line_each(value: Any, levels: int = DEPTH_OF_RUNS) -> str:
    """Return JSON in which each run is one line, so that a new run is one line of a diff."""
    if levels == 0 or not isinstance(value, (dict, list)):
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{json.dumps(k)}: {with_a_line_each(v, levels - 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(with_a_line_each(entry, levels - 1) for entry in value) + "\n]"


def main() -> None:
    """Print the tables and expectations of all studies, and write the file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", help="folder of a sweep; FOLDER+FOLDER are one study")
    parser.add_argument("--json", type=Path, help="file to read and extend")
    arguments = parser.parse_args()
    console = Console(width=130, highlight=False)
    file: Path | None = arguments.json
    before = json.loads(file.read_text())["studies"] if file and file.exists() else {}
    studies = {}
    for sweep in arguments.sweeps:
        folders = [Path(folder) for folder in sweep.split("+")]
        name = folders[0].name
        runs = read_study(folders, before.get(name, {}).get("runs", {}))
        if not runs:
            kept = f", and {file} keeps none of {name}" if file else ""
            raise SystemExit(f"there is no finished run in {sweep}{kept}")
        lines = [expectation.in_one_line() for expectation in expectations([*runs.values()])]
        of = [Run(Path(at), run["config"], run["top1"]) for at, run in runs.items()]
        collected = arrange(of)
        console.print(as_markdown(collected), markup=False)
        for line in lines:
            console.print(line, markup=False)
        studies[name] = {
            "table": as_csv(collected).splitlines(),
            "expectations": lines,
            "runs": runs,
        }
    if file is not None:
        record = {"machine": describe_machine(), "studies": before | studies}
        file.write_text(with_a_line_each(record) + "\n")
        console.print(f"written to {file}")


if __name__ == "__main__":
    main()
