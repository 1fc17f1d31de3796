"""Damage any file of a run folder, or of the prepared images it trains on, and run any command."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tests.attack.bends import (
    Bend,
    change_lines,
    draw_bend,
    flip_bits,
    flip_digit,
    replace_text,
    swap,
)
from tests.attack.campaign import Kind, Trial
from tests.attack.whole_folder import COMMANDS, LAST, OF_NAME, OFTEN, WHOLE, Attack


def draw(chance: random.Random) -> Trial:
    """Draw any damage of any file, and a command that reads the folder."""
    files = WHOLE.files()
    command = OF_NAME[chance.choice(OFTEN)] if chance.random() < 0.6 else chance.choice(COMMANDS)
    of_run = [file for file in files if file.startswith(f"runs/{command.run}/")]
    images = "set/" if command.run == "debug" else "listed/"
    of_set = [file for file in files if file.startswith(images)]
    pool = of_set if chance.random() < 0.25 else of_run
    few = [file for file in pool if file.endswith((".json", ".jsonl", ".yaml", ".npy"))]
    file = chance.choice(few if chance.random() < 0.7 else pool)
    siblings = [
        Path(os.path.relpath(other, Path(file).parent))
        for other in pool
        if other != file and Path(other).suffix == Path(file).suffix
    ]
    attack = Attack(file, draw_bend(chance, Path(file), siblings), command)
    return Trial(attack.what, attack.carry_out)


def _known(
    file: str, what: str, apply: Callable[[Path], object], *commands: str, goes_on: bool = False
) -> list[Trial]:
    attacks = [Attack(file, Bend(what, apply), OF_NAME[name], goes_on) for name in commands]
    return [Trial(attack.what, attack.carry_out) for attack in attacks]


def bend_line(path: Path, event: str, pattern: str, new: str) -> None:
    """Change the first line of an event by a regular expression."""
    lines = path.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.startswith(f'{{"event": "{event}"'))
    lines[at], count = re.subn(pattern, new, lines[at], count=1)
    assert count, f"no {pattern} in the line of a {event}"
    path.write_text("".join(lines))


def exchange_labels(path: Path) -> None:
    """Give every third image the other class."""
    labels_N = np.load(path)
    labels_N[::3] = 1 - labels_N[::3]
    np.save(path, labels_N)


def _digit(seed: int) -> Callable[[Path], None]:
    return lambda path: flip_digit(path, random.Random(seed))


def _line(how: str, seed: float) -> Callable[[Path], None]:
    return lambda path: change_lines(path, random.Random(seed), how)


def _bits(seed: int) -> Callable[[Path], None]:
    return lambda path: flip_bits(path, random.Random(seed), 1)


def _in_line(event: str, pattern: str, new: str) -> Callable[[Path], None]:
    return partial(bend_line, event=event, pattern=pattern, new=new)


def _replaced(pattern: str, new: str) -> Callable[[Path], None]:
    return partial(replace_text, pattern=pattern, new=new)


def empty(path: Path) -> None:
    """Empty a file."""
    path.write_bytes(b"")


DEBUG_RUN, CUT_RUN = "runs/debug", "runs/cut"
METRICS, STARTS = f"{DEBUG_RUN}/metrics.jsonl", f"{DEBUG_RUN}/environment.json"
CONFIG, SUMMARY = f"{DEBUG_RUN}/config.yaml", f"{DEBUG_RUN}/summary.json"
KNN = f"{DEBUG_RUN}/evaluation/{LAST}/knn.json"
END, REQUEST = f"{DEBUG_RUN}/jobs/001/start-0/end.json", f"{DEBUG_RUN}/jobs/001/request.json"
OF_CUT_METRICS = f"{CUT_RUN}/metrics.jsonl"
KNOWN = (
    # Item 5: a bent line ends a resume.
    *_known(
        OF_CUT_METRICS,
        "a step's line bent",
        _in_line("step", '"round"', '"ro\x00nd"'),
        "resume",
        goes_on=True,
    ),
    *_known(
        OF_CUT_METRICS,
        "a step without its number",
        _in_line("step", '"step": ', '"stop": '),
        "resume",
        goes_on=True,
    ),
    *_known(
        OF_CUT_METRICS,
        "a round of text",
        _in_line("round", '"round": 0', '"round": "x"'),
        "resume",
        goes_on=True,
    ),
    *_known(
        OF_CUT_METRICS,
        "a line of bytes",
        _in_line("epoch", '"epoch": 0', '"epoch": \x01'),
        "resume",
        goes_on=True,
    ),
    # Item 4: odd lines end the readers, or change what they show.
    *_known(
        METRICS,
        "a step's line bent",
        _in_line("step", '"round"', '"ro\x00nd"'),
        "report",
        "status",
        "export",
        "train",
        goes_on=True,
    ),
    *_known(
        METRICS,
        "a round too many",
        _in_line("round", '"round": 0', '"round": 7'),
        "report",
        "status",
        "export",
        goes_on=True,
    ),
    *_known(
        METRICS,
        "another loss",
        _in_line("step", r'"loss": \d', '"loss": 9'),
        "report",
        goes_on=True,
    ),
    *_known(
        METRICS,
        "another kNN",
        _in_line("round", r'"knn": [\d.]+', '"knn": 0.123'),
        "report",
        "export",
        "train",
        goes_on=True,
    ),
    *_known(METRICS, "a line repeated", _line("repeat", 4), "report", "train", goes_on=True),
    *_known(METRICS, "a line deleted", _line("delete", 3), "report", "train"),
    *_known(METRICS, "deleted", Path.unlink, "report", "status", "export", "plan"),
    *_known(METRICS, "one endless line", lambda path: path.write_bytes(b"[" * 100_000), "report"),
    *_known(OF_CUT_METRICS, "a line deleted", _line("delete", 0.8064979845204261), "resume"),
    *_known(
        f"{DEBUG_RUN}/checkpoints/{LAST}/state.json",
        "swapped with ../r00-e0001/state.json",
        lambda path: swap(path, path.parent.parent / "r00-e0001/state.json"),
        "report",
    ),
    *_known(
        f"{DEBUG_RUN}/checkpoints/r00-e0001/state.json",
        "that of linear classifiers",
        lambda path: shutil.copy(
            next((path.parents[2] / "evaluation").glob("*/probe-*/s*/state.json")), path
        ),
        "report",
    ),
    *_known(METRICS, "emptied", empty, "report", "status", "export", "plan"),
    *_known(STARTS, "emptied", empty, "report", "status", "plan", "train"),
    *_known(STARTS, "deleted", Path.unlink, "report"),
    *_known(
        STARTS,
        "a start of another size",
        _replaced('"world_size": 1', '"world_size": 3'),
        "report",
        "status",
        "train",
    ),
    *_known(STARTS, "no start", lambda path: path.write_text("[]"), "report"),
    *_known(
        STARTS,
        "a start in vain",
        _replaced('"started": "2', '"started": "x'),
        "report",
        "status",
        goes_on=True,
    ),
    *_known(CONFIG, "emptied", empty, "report", "table", "train", "export", "plan"),
    *_known(CONFIG, "deleted", Path.unlink, "plan"),
    *_known(CONFIG, "no config", lambda path: path.write_text("event: [step]\n"), "plan"),
    *_known(CONFIG, "another rate", _replaced("lr: 0.03", "lr: 0.02"), "report", "table", "train"),
    *_known(
        CONFIG, "cut", lambda path: path.write_bytes(path.read_bytes()[:60]), "report", "table"
    ),
    *_known(
        SUMMARY,
        "another kNN",
        _replaced(r'(?s)(.*"knn": )[\d.]+', r"\g<1>0.123"),
        "table",
    ),
    *_known(SUMMARY, "emptied", empty, "table"),
    *_known(SUMMARY, "deleted", Path.unlink, "table"),
    *_known(
        KNN,
        "another share",
        _replaced(r'"top1": [\d.]+', '"top1": 0.123'),
        "table",
        "report",
        "evaluate",
        goes_on=True,
    ),
    *_known(KNN, "emptied", empty, "table", "report", goes_on=True),
    *_known(
        END, "another reason", _replaced("its end", "its evd"), "status", "report", goes_on=True
    ),
    *_known(END, "emptied", empty, "status", "report", goes_on=True),
    *_known(REQUEST, "emptied", empty, "status", "logs", goes_on=True),
    *_known(REQUEST, "other nodes", _replaced('"nodes": 1', '"nodes": 3'), "status", goes_on=True),
    *_known(
        f"{DEBUG_RUN}/checkpoints/latest",
        "another",
        lambda p: p.write_text("r00-e0001\n"),
        "report",
        "export",
    ),
    *_known(f"{DEBUG_RUN}/checkpoints/latest", "deleted", Path.unlink, "report", "train"),
    # Item 7: a prepared set that is not as it was made.
    *_known(
        "set/train/labels.npy", "with other labels", exchange_labels, "evaluate", "report", "probe"
    ),
    *_known("listed/train/labels.npy", "with other labels", exchange_labels, "resume"),
    *_known("set/train/labels.npy", "deleted", Path.unlink, "train", "report"),
    *_known("listed/train/labels.npy", "deleted", Path.unlink, "resume"),
    *_known("listed/train/labels.npy", "emptied", empty, "resume"),
    *_known("set/train/heights.npy", "bent", _bits(5), "train"),
    *_known("set/train/manifest.json", "another digit", _digit(1), "train", "plan"),
    *_known(
        "set/train/manifest.json",
        "swapped with ../test/manifest.json",
        lambda path: swap(path, path.parent.parent / "test/manifest.json"),
        "train",
        "evaluate",
        "plan",
        "submit",
    ),
    *_known("set/train/manifest.json", "deleted", Path.unlink, "plan", "submit"),
)
KIND = Kind("folders", 600, KNOWN, draw)
