"""Name checkpoints, list those of a folder, and recognise what this program wrote.

Only folders under the name that their state.json gives them count. Whatever else a user keeps
beside the checkpoints, a copy of one included, is never chosen, moved or removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from and_dist.utils.folder_names import Named, name_of
from and_dist.utils.owned_files import check_file, or_empty, read_json
from and_dist.utils.owned_folders import check_folder
from and_dist.utils.plain_files import read_plain

NAMES_OF_OURS = r"r\d{2,}-e\d{4,}(?:-s\d{6,})?|s\d{8,}"
STATE = "state.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FILES = Named(rf"{re.escape(STATE)}|shard-\d+-model-\d+-of-\d+\.safetensors")
"""The names of the files in a checkpoint."""
NEVER_READ = "move it away, it is not a checkpoint that and-dist wrote"
Tensors = dict[str, Tensor]
State = dict[str, Any]


def checkpoint_name(round_index: int, epochs: int, step: int) -> str:
    """Return the name of a checkpoint of training."""
    steps = f"-s{step:06}" if step else ""
    return f"r{round_index:02}-e{epochs:04}{steps}"


def parse_name(name: str) -> tuple[int, int, int] | None:
    """Return (round, epochs, steps) of the name of a checkpoint of training, None for others."""
    found = re.fullmatch(r"r(\d{2,})-e(\d{4,})(?:-s(\d{6,}))?", name)
    if found is None:
        return None
    round_index, epochs, steps = (int(number or 0) for number in found.groups())
    return round_index, epochs, steps


def probe_name(steps_done: int) -> str:
    """Return the name of a checkpoint of linear classifiers."""
    return f"s{steps_done:08}"


def name_in(state: State) -> str | None:
    """Return the name under which a state was saved; earlier revisions did not write it down."""
    if "name" in state:
        return str(state["name"])
    if "steps_done" in state:
        return probe_name(state["steps_done"])
    progress = state.get("progress")
    if not isinstance(progress, dict):
        return None
    return checkpoint_name(progress["round_index"], progress["epochs"], progress["step"])


def names_of_checkpoint(checkpoint: Path) -> Container[str] | None:
    """Return the names of a checkpoint's files; None for a folder that is none of ours.

    One whose state.json is lost or damaged is known by its name and by the kinds of its files.
    """
    name = name_of(checkpoint)
    if not NAME.fullmatch(name):
        return None
    state = read_json(checkpoint / STATE)
    if isinstance(state, dict) and "format" in state:
        try:
            named = name_in(state)
        except (KeyError, TypeError, ValueError, OverflowError):
            named = None
        return FILES if named in (None, name) else None
    return FILES if re.fullmatch(NAMES_OF_OURS, name) else None


def is_pointer(path: Path) -> bool:
    """Recognise `latest`: one line with a checkpoint's name."""
    try:
        return NAME.fullmatch(read_plain(path).strip()) is not None
    except (OSError, ValueError):
        return False


def refuse_occupied(folder: Path, names: Iterable[str]) -> None:
    """Raise NotOursError where something else has a name that a checkpoint is going to need."""
    check_file(folder / "latest", or_empty(is_pointer))
    for name in names:
        check_folder(folder / name, names_of_checkpoint, NEVER_READ)


def list_checkpoints(folder: Path) -> list[str]:
    """Return the names of a folder's checkpoints: `latest` first, then from new to old."""
    if not folder.is_dir():
        return []
    names = sorted((path.name for path in folder.iterdir() if _is_ours(path)), reverse=True)
    latest = read_pointer(folder)
    if latest is None or (latest not in names and os.path.lexists(folder / latest)):
        return names
    # `latest` counts even if its folder is gone: the loss is reported then, not passed over.
    return [latest, *(name for name in names if name != latest)]


def list_misnamed(folder: Path) -> list[str]:
    """Return the names of what would be a folder's checkpoints but for the name in state.json."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        path.name
        for path in paths
        if re.fullmatch(NAMES_OF_OURS, path.name) and _has_our_files(path) and not _is_ours(path)
    ]


def _is_ours(path: Path) -> bool:
    """Recognise a checkpoint of ours; it may hold notes of a user's besides."""
    return _has_our_files(path) and names_of_checkpoint(path) is not None


def _has_our_files(path: Path) -> bool:
    """Return whether this is a folder with files as those of a checkpoint."""
    if path.name.startswith(".") or path.is_symlink() or not path.is_dir():
        return False
    return any(name in FILES for name in os.listdir(path))


def read_pointer(folder: Path) -> str | None:
    """Return the name in `latest`, None where it can be no checkpoint of ours."""
    try:
        name = read_plain(folder / "latest").strip()
    except (OSError, ValueError):
        return None
    return name if NAME.fullmatch(name) else None
