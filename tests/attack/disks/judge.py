"""Disturb a command, run it again undisturbed, and say what broke."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tests.attack.disks.commands import RUN, Ended, Scene, left_running, run
from tests.attack.disks.faults import ROOM, Fault, Injection, count_calls
from tests.ranks.runs import difference

SHARED_MEMORY = Path("/dev/shm")
SECONDS_TO_END = 20.0
"""Ranks that lost their launcher have ended by then."""
TRY_AGAIN = 75
UNFINISHED = re.compile(r"\.(unfinished|building|replaced)$")
OURS = "|".join(str(Path(package).absolute()) for package in ("and_dist", "launcher"))
OUR_TRACEBACK = re.compile(rf'Traceback(?:.(?!Traceback))*?File "(?:{OURS})/', re.S)
"""One that passes through our code: torchrun prints its own whenever a rank has failed."""
RANK_ENDS = re.compile(r"exitcode\s*: (-?\d+)")
KEPT = re.compile("exists: choose another --(out|sheet)")
LEFT = re.compile(r"[\d.,]+ (?:B|kB|MB|GB|TB) left|no room is left")


def try_fault(scene: Scene, fault: Fault, folder: Path) -> str:
    """Run a command with failing calls, then without; return what broke."""
    injection = Injection(fault, scene_folder(scene, folder))
    before = shared_names()
    first = run(scene, injection.folder, injection.environment())
    struck = injection.struck()
    broke = judge_end(scene, first, fault.error if struck else 0)
    if struck and fault.error > 0 and first.status != 0:
        said = first.said + said_in_logs(injection.folder)
        broke = broke or judge_message(said, fault.error, struck, injection.folder)
    if fault.error in ROOM and not scene.is_training:
        broke = broke or left_unfinished(injection.folder)
    # Where nothing can be removed any more, what has been published of the output stays.
    is_kept = fault.error not in ROOM and not fault.is_once
    again = judge_second_run(scene, injection.folder, is_kept or first.status == 0)
    return broke or again or new_in_shared_memory(before)


def said_in_logs(folder: Path) -> str:
    """Return what the nodes and ranks of and-launch have said."""
    logs = sorted((folder / RUN / "logs").glob("*.log"))
    return "".join(log.read_text(errors="replace") for log in logs)


def scene_folder(scene: Scene, folder: Path) -> Path:
    """Return a new folder with what a scene needs."""
    laid = folder / "scene"
    laid.mkdir()
    scene.lay(laid)
    return laid


def judge_end(scene: Scene, ended: Ended, error: int) -> str:
    """Return what is wrong with the end of a command that was struck by an error, 0 for none."""
    if ended.exceeded:
        return f"{ended.exceeded}: {_end_of(ended.said)}"
    if "Traceback" in ended.said if not scene.has_ranks else OUR_TRACEBACK.search(ended.said):
        return f"it ended in a traceback: {_end_of(ended.said)}"
    statuses = [ended.status]
    if scene.has_ranks and ended.status == 1:
        statuses = [int(status) for status in RANK_ENDS.findall(ended.said)]
    allowed = _allowed_ends(scene, error)
    if wrong := [status for status in statuses if status not in allowed]:
        return f"it ended with {wrong[0]}: {_end_of(ended.said)}"
    return ""


def _allowed_ends(scene: Scene, error: int) -> tuple[int, ...]:
    if error < 0:
        return (0, 1, TRY_AGAIN, error, -15)
    if scene.command[0] == "and-launch":
        return (0, 1, 2, TRY_AGAIN)  # 1 after as many starts as get nowhere
    if scene.is_training:
        # torchrun ends with SIGTERM those ranks that are the last to end by themselves.
        return (0, TRY_AGAIN, -15) if scene.has_ranks else (0, TRY_AGAIN)
    return (0, 1, 2)  # 2 where it was seen before anything was written


def judge_message(said: str, error: int, struck: Sequence[str], folder: Path) -> str:
    """Return what a message about a full or read-only disk lacks."""
    if os.strerror(error) not in said and not LEFT.search(said):
        return f"it does not say {os.strerror(error)!r}: {_end_of(said)}"
    if not any(_is_named(path, said, folder) for path in struck):
        return f"it names no path such as {struck[0]}: {_end_of(said)}"
    if error in ROOM and not LEFT.search(said):
        return f"it does not say how much room is left: {_end_of(said)}"
    return ""


def _is_named(struck: str, said: str, folder: Path) -> bool:
    """Return whether a file, or the folder it lies in, is named as a user knows it.

    A copy of the code is named by its packages.
    """
    path = Path(struck)
    if not path.is_relative_to(folder):
        return str(path.parent) in said
    parts = path.relative_to(folder).parts
    hidden = next((at for at, part in enumerate(parts) if part.startswith(".")), len(parts) - 1)
    name = re.sub(r"^\.(.*)\.[0-9a-f]{16}\.\w+$", r"\1", parts[hidden])
    above = Path(*parts[:hidden])
    if "code" in parts and str(Path(*parts[: parts.index("code") + 2])) in said:
        return True
    return str(above / name) in said or (str(above) != "." and str(above) in said)


def judge_second_run(scene: Scene, folder: Path, may_refuse: bool = False) -> str:
    """Return what is wrong after the same command has run undisturbed.

    A command that has published its output at first refuses to write over the --out that it was
    given. It then clears nothing either, such as a temporary folder whose removal was struck.
    """
    ended = run(scene, folder)
    if may_refuse and ended.status == 2 and KEPT.search(ended.said):
        return ""
    if ended.status != 0:
        return f"run again, it ended with {ended.status}: {_end_of(ended.said)}"
    if broke := judge_end(scene, ended, 0):
        return f"run again, {broke}"
    if left := left_running(folder, SECONDS_TO_END):
        return f"{len(left)} processes were left behind"
    if scene.is_training and (differs := difference(folder / RUN, undisturbed(scene) / RUN)):
        return f"it differs from an undisturbed run: {differs}"
    return left_unfinished(folder)


def left_unfinished(folder: Path) -> str:
    """Return which unfinished file lies in a folder."""
    left = [path for path in folder.rglob("*") if UNFINISHED.search(path.name)]
    return f"{left[0].relative_to(folder)} was left behind" if left else ""


def shared_names() -> frozenset[str]:
    """Return the names of our files in shared memory."""
    return frozenset(name for name in os.listdir(SHARED_MEMORY) if name.startswith("and-dist"))


def new_in_shared_memory(before: frozenset[str]) -> str:
    """Return which file of ours came to shared memory and stayed."""
    left = shared_names() - before
    return f"{SHARED_MEMORY / min(left)} was left behind" if left else ""


_lock = threading.RLock()


def undisturbed(scene: Scene) -> Path:
    """Return the folder of a scene whose command has run to its end."""
    with _lock:
        return _undisturbed(scene)


@cache
def _undisturbed(scene: Scene) -> Path:
    folder = scene_folder(scene, _kept_folder())
    ended = run(scene, folder)
    assert ended.status == 0, ended.said
    return folder


def num_calls(scene: Scene, error: int) -> int:
    """Return how many calls of an undisturbed command an error could strike."""
    with _lock:
        return _num_calls(scene, error)


@cache
def _num_calls(scene: Scene, error: int) -> int:
    folder = scene_folder(scene, _kept_folder())
    counting = count_calls(folder, error)
    ended = run(scene, folder, counting.environment())
    assert ended.status == 0, ended.said
    return counting.num_calls()


def _kept_folder() -> Path:
    """Return a new folder that is removed with this process."""
    folder = Path(mkdtemp(prefix="and-dist-undisturbed-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _end_of(said: str) -> str:
    return said[-500:].replace("\n", " | ")
