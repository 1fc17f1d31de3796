"""A folder with runs and prepared images, commands on it, and what they may do if it is damaged.

A command holds if it ends with a status of 0, 1, 2 or 75, without a traceback and within limits,
and if either all it says and writes equals what it says and writes of the whole folder, or it says
something of the damaged file by its name. A run that goes on ends with the same weights.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.attack.bends import Bend
from tests.foreign_files.child import KILLED, Limits, Outcome, run_command
from tests.foreign_files.scenes import DEBUG, PROBES, TINY
from tests.pictures import save_pictures

LIMITS = Limits(seconds=300.0, mb=6000.0)
STATUSES = (0, 1, 2, 75)
LAST = "r01-e0001"
OF_DEBUG = (*TINY, "data.limit=null", "data.train=set/train", "data.test=set/test")
OF_CUT = (*OF_DEBUG[:-2], "name=cut", "data.train=listed/train", "data.test=listed/test")
PHOTO = "photos/train/a/00.png"
VARIES = (
    r"\d+(\.\d+)? (ms|s|images/s|MB|GB|kB)\b",
    r"\d+:\d\d(:\d\d)?",
    r"\b1[78]\d{8}(\.\d+)?",
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d",
    r"[0-9a-f]{64}",
    r" +",
    r"127\.0\.0\.1:\d+",
)
"""Patterns of what no two equal runs print alike."""
NOT_COMPARED = re.compile(
    r"runs/\w+/(logs|stalls|discovery|export|tensorboard|neighbourhoods)/|/code/|"
    r"start-\d+/checkpoint$|\.bin$"
)
"""Files whose content nothing vouches for: logs are text, and images are not hashed."""
OPTIONAL = re.compile(r"runs/\w+/(evaluation|jobs|checkpoints/(?!latest|r01-e0001))|bad_images")
"""Files that a folder may as well never have had."""


@dataclass(frozen=True)
class Command:
    """A command on a scene's run, and the file it writes above all."""

    name: str
    words: tuple[str, ...]
    run: str = "debug"
    output: str = ""
    """A file or folder that has to be as the command writes it of a whole folder."""

    def run_in(self, scene: Path) -> Outcome:
        """Run it in a scene."""
        return run_command(self.words, scene, without_umap, limits=LIMITS)


def _dist(name: str, *words: str, run: str = "debug", output: str = "") -> Command:
    return Command(name, ("and-dist", *words), run, output)


def _launch(name: str, *words: str) -> Command:
    return Command(name, ("and-launch", *words))


TRAIN = ("train", "--config", DEBUG)
COMMANDS = (
    _dist("resume", *TRAIN, *OF_CUT, run="cut", output=f"runs/cut/checkpoints/{LAST}"),
    _dist("train", *TRAIN, *OF_DEBUG, output=f"runs/debug/checkpoints/{LAST}"),
    _dist("evaluate", "evaluate", "runs/debug", "--knn"),
    _dist("probe", "evaluate", "runs/debug", "--linear", "--layers", "fc", *PROBES),
    _dist("discover", "discover", "runs/debug", "--out", "found"),
    _dist("export", "export", "runs/debug", "--out", "left", output="left"),
    _dist("neighbours", "neighbours", "runs/debug", PHOTO, "--count", "2"),
    _dist("embed", "embed", "runs/debug", "photos/train", "--out", "f.npy", output="f.npy"),
    _dist("report", "report", "runs/debug", "--out", "page.html", output="page.html"),
    _dist("table", "table", "runs/debug"),
    _dist("plan", "plan", "--config", DEBUG, *OF_DEBUG),
    _launch("status", "status", "runs/debug"),
    _launch("logs", "logs", "runs/debug"),
    _launch("requeue", "requeue", "runs/debug"),
    _launch("submit", "submit", "--dry-run", "--gpus", "0", "--config", DEBUG, *OF_DEBUG),
)
OF_NAME = {command.name: command for command in COMMANDS}
OFTEN = ("resume", "train", "report", "table", "status", "export", "evaluate")


@dataclass(frozen=True)
class Attack:
    """One damage and the command that meets it."""

    file: str
    bend: Bend
    command: Command
    goes_on: bool = False
    """The command has to go on without the file, or what is damaged in it."""

    @property
    def what(self) -> str:
        """Return how to repeat it."""
        return f"{self.file} {self.bend.what}, then {self.command.name}"

    def carry_out(self, folder: Path) -> str:
        """Return what broke, "" for nothing."""
        expected = WHOLE.result_of(self.command)
        scene = folder / "scene"
        shutil.copytree(WHOLE.folder, scene)
        self.bend.apply(scene / self.file)
        found = self.command.run_in(scene)
        return crash_in(found) or self.compare(
            found, read_result(found, self.command, scene), expected
        )

    def compare(self, found: Outcome, result: Result, expected: Result) -> str:
        """Return what differs without a word about the file."""
        has_trained = self.command.name in ("resume", "train") and found.status == 0
        if has_trained and result.output != expected.output and not self.bend.is_forged:
            return f"it ended with other weights: {found.said[-600:]}"
        if self.goes_on and found.status != 0:
            return f"it did not go on: {found.said[-600:]}"
        if self.bend.is_forged or NOT_COMPARED.search(self.file):
            return ""
        if self.bend.what == "deleted" and OPTIONAL.search(self.file):
            return ""
        new = [line for line in result.lines if line not in expected.lines]
        # A swap damages two files, and a command may read only the other one.
        damaged = [self.file, *re.findall(r"^swapped with (.+)", self.bend.what)]
        if any(Path(file).name in line for file in damaged for line in new):
            return ""
        if result != expected:
            return (
                f"not a word about it (status {found.status}), and: {(new or ['other output'])[:4]}"
            )
        return ""


def crash_in(found: Outcome) -> str:
    """Return how a command crashed, "" if it did not."""
    if found.exceeded:
        return found.exceeded
    if found.status not in STATUSES:
        return f"it ended with status {found.status}: {found.said[-300:]}"
    if "Traceback" in found.said and "and-dist: training failed" not in found.said:
        return f"it ended in a traceback: {found.said[-600:]}"
    return ""


@dataclass(frozen=True)
class Result:
    """What a command said, and what its output holds, without what varies."""

    status: int
    lines: tuple[str, ...]
    output: tuple[tuple[str, bytes], ...]


def read_result(found: Outcome, command: Command, scene: Path) -> Result:
    """Return the result of a command that was run in a scene."""
    lines = tuple(normalised(line, scene) for line in found.said.splitlines())
    place = scene / command.output
    paths = [place] if place.is_file() else sorted(place.rglob("*")) if command.output else []
    files = [path for path in paths if path.is_file() and path.name != "state.json"]
    output = tuple((str(p.relative_to(scene)), _content_of(p, scene)) for p in files)
    return Result(found.status, lines, output)


def normalised(text: str, scene: Path) -> str:
    """Return a text without times, rates and the folder's own name."""
    text = text.replace(str(scene), "SCENE")
    for pattern in VARIES:
        text = re.sub(pattern, "~", text)
    return text


def _content_of(path: Path, scene: Path) -> bytes:
    if path.suffix in (".html", ".md"):
        return normalised(path.read_text(), scene).encode()
    if path.suffix == ".safetensors":  # whose header lists the tensors in any order
        tensors = sorted(load_file(path).items())
        return b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in tensors)
    return path.read_bytes()


class Whole:
    """A folder with a finished run and a killed one, and what each command makes of it."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._lock = threading.RLock()
        self._folder: Path | None = None
        self._results: dict[str, Result] = {}

    @property
    def folder(self) -> Path:
        """Return the folder, which is made when it is first needed."""
        with self._lock:
            if self._folder is None:
                root = Path(tempfile.mkdtemp(prefix="and-dist-whole-")).resolve()
                atexit.register(shutil.rmtree, root, ignore_errors=True)
                folder = root / "scene"
                folder.mkdir()
                lay(folder)
                self._folder = folder
            return self._folder

    def result_of(self, command: Command) -> Result:
        """Return the result of a command on the whole folder."""
        with self._lock:
            if command.name not in self._results:
                copy = self.folder.with_name(f"of-{command.name}")
                shutil.copytree(self.folder, copy)
                found = command.run_in(copy)
                assert crash_in(found) == "", found.said
                assert found.status == (2 if command.name == "requeue" else 0), found.said
                self._results[command.name] = read_result(found, command, copy)
                shutil.rmtree(copy)
            return self._results[command.name]

    def files(self) -> list[str]:
        """Return all files but the pictures, which are somebody's own, and copies of the code."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        kept = [f for f in map(str, found) if "/code/" not in f and not f.startswith("photos/")]
        return sorted(kept)


WHOLE = Whole()


def lay(folder: Path) -> None:
    """Prepare two sets, train a run of one by and-launch, and kill a run of the other."""
    for split, count in (("train", 20), ("val", 8)):
        save_pictures(folder / "photos" / split, [(40, 36)] * count, "ab", ["png"])
    prepare = ("and-dist", "prepare", "photos", "--workers", "1", "--out")
    _run(folder, *prepare, "set", "--raw", "32")
    _run(folder, *prepare, "listed")
    _run(folder, "and-launch", "local", "--gpus", "0", "--config", DEBUG, *OF_DEBUG)
    _run(folder, "and-dist", "evaluate", "runs/debug", "--knn")
    _run(folder, "and-dist", "evaluate", "runs/debug", "--linear", *PROBES)
    _run(folder, "and-dist", "discover", "runs/debug")
    killed = run_command(("and-dist", *TRAIN, *OF_CUT), folder, die_at_last_save)
    assert killed.status == KILLED, killed.said


def _run(folder: Path, *command: str) -> None:
    found = run_command(command, folder)
    assert found.status == 0, found.said


def without_umap() -> None:
    """Let this process be one where umap-learn is not installed, which takes 15 s to compile."""
    sys.modules["umap"] = None  # type: ignore[assignment] # as import takes it


def die_at_last_save() -> None:
    """Let this process die as if by SIGKILL, as the last checkpoint is about to be the newest."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "os.rename" or not str(arguments[1]).endswith("checkpoints/latest"):
            return
        if Path(f"runs/cut/checkpoints/{LAST}").exists():
            sys.stdout.flush()
            with Path(f"{Path.cwd()}.touched").open("a") as log:  # as run_command's own end does
                log.write(str(KILLED))
            os._exit(KILLED)

    sys.addaudithook(hear)
