"""Checkpoints: tensors as safetensors through torch's distributed checkpoint, the rest as JSON.

    RUN/checkpoints/r01-e0003/          after 3 epochs of round 1: shard-*.safetensors, state.json
    RUN/checkpoints/r01-e0003-s000120/  120 steps later
    RUN/checkpoints/latest              the name of the newest whole one

Nothing in one is ever executed. A folder is written under another name, flushed, then renamed;
`latest` moves last, so at any moment it names a whole checkpoint. state.json holds size and sha256
of every file and of itself; all are compared before anything is loaded. The bank is a DTensor cut
along its rows, which loads on any number of ranks.

Only what was written here counts: a folder under the name that its state.json gives it. Whatever
else a user keeps beside the checkpoints, a copy of one included, is never chosen, moved or removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from and_dist.distributed.collectives import gather_objects, raise_on_all_ranks
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank
from and_dist.utils.owned_files import TOKEN, check_file, or_empty, read_json, sum_of, write_file
from and_dist.utils.owned_folders import (
    Named,
    NewFolder,
    check_folder,
    entries_of,
    flush_file,
    flush_folder,
    move_folder,
    name_of,
    remove_folder,
    restore_folder,
)

FORMAT = 3
NAMES_OF_OURS = r"r\d{2,}-e\d{4,}(?:-s\d{6,})?|s\d{8,}"
PUT_ASIDE = re.compile(rf"\.({NAMES_OF_OURS})\.damaged")
SPARE_BYTES = 1_000_000
"""For state.json, the headers of the shards, and a file system's own."""
STATE = "state.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FILES = Named(rf"{re.escape(STATE)}|shard-\d+-model-\d+-of-\d+\.safetensors")
"""Whatever may lie in a checkpoint."""
NEVER_READ = "move it away, it is not a checkpoint that and-dist wrote"
Tensors = dict[str, Tensor]
State = dict[str, Any]


class CorruptCheckpoint(ValueError):
    """A checkpoint whose content is not what was written."""


def as_sharded(bank: MemoryBank, world: World) -> DTensor:
    """The whole bank as torch's distributed tensor; shares the shard's memory on a CPU."""
    mesh = DeviceMesh.from_group(world.group, "cpu")
    dim = bank.features_SD.shape[1]
    return DTensor.from_local(
        bank.features_SD.cpu(),
        mesh,
        [Shard(0)],
        run_check=False,
        shape=torch.Size((bank.num_rows, dim)),
        stride=(dim, 1),
    )


def local_rows(bank: Tensor) -> Tensor:
    """This rank's rows of what as_sharded made."""
    assert isinstance(bank, DTensor)
    return bank.to_local()


def save_checkpoint(folder: Path, name: str, tensors: Tensors, state: State, world: World) -> None:
    """Write one checkpoint together; whatever happens, an older one stays whole."""
    building, path = None, Path()
    with raise_on_all_ranks(world, f"making room for checkpoint {name}"):
        if world.is_coordinator:
            folder.mkdir(parents=True, exist_ok=True)
            _check_space(folder, tensors)
            check_file(folder / "latest", or_empty(is_pointer))
            building = NewFolder(folder / name, names_of_checkpoint, FILES, remedy=NEVER_READ)
            path = building.path
    (path, *_) = gather_objects(world, path)
    try:
        _write_tensors(path, name, tensors, world)
        # Listed once: a network file system may show something else elsewhere.
        names = entries_of(path) if world.is_coordinator else []
        (names, *_) = gather_objects(world, names)
        with raise_on_all_ranks(world, f"flushing checkpoint {name}"):
            mine = _sums_of(path, names[world.rank :: world.size])
        files = {
            file: entry for share in gather_objects(world, mine) for file, entry in share.items()
        }
        with raise_on_all_ranks(world, f"finishing checkpoint {name}"):
            if building is not None:
                _write_state(path, {"format": FORMAT, "name": name, **state, "files": files})
                building.publish()
                _point_latest_at(folder, name)
    except AllRanksError:
        if building is not None:
            building.discard()
        raise


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
        except (KeyError, TypeError, ValueError):
            named = None
        return FILES if named in (None, name) else None
    return FILES if re.fullmatch(NAMES_OF_OURS, name) else None


def is_pointer(path: Path) -> bool:
    """Recognise `latest`: one line with a checkpoint's name."""
    try:
        return NAME.fullmatch(path.read_text().strip()) is not None
    except (OSError, ValueError):
        return False


def refuse_occupied(folder: Path, names: Iterable[str]) -> None:
    """Raise NotOursError where something else has a name that a checkpoint is going to need."""
    check_file(folder / "latest", or_empty(is_pointer))
    for name in names:
        check_folder(folder / name, names_of_checkpoint, NEVER_READ)


def read_checkpoint(checkpoint: Path) -> tuple[Path, State]:
    """A checkpoint and its state.json; ValueError where there is none to read."""
    if not checkpoint.is_dir():
        others = set(list_checkpoints(checkpoint.parent)) - {checkpoint.name}
        raise CorruptCheckpoint(
            f"there is no checkpoint {checkpoint}; {checkpoint.parent} has: "
            f"{', '.join(sorted(others)) or 'none'}"
        )
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"checkpoint {checkpoint} cannot be read: {error}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise CorruptCheckpoint(
            f"checkpoint {checkpoint} cannot be read: state.json is none of ours"
        )
    if state["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {checkpoint} is of format {state['format']}, "
            f"this program reads format {FORMAT}; start anew under another name=..."
        )
    if state.pop("sha256", None) != _sum_of_state(state):
        raise CorruptCheckpoint(
            f"checkpoint {checkpoint} cannot be read: state.json is not as written"
        )
    return checkpoint, state


def read_latest(folder: Path) -> tuple[Path, State] | None:
    """The newest checkpoint and its state.json, None where there is none."""
    names = list_checkpoints(folder)
    return read_checkpoint(folder / names[0]) if names else None


def list_checkpoints(folder: Path) -> list[str]:
    """Names, the one to go on from first: `latest`, then from new to old."""
    if not folder.is_dir():
        return []
    names = sorted((path.name for path in folder.iterdir() if _is_ours(path)), reverse=True)
    latest = _read_pointer(folder)
    if latest is None or (latest not in names and os.path.lexists(folder / latest)):
        return names
    return [latest, *(name for name in names if name != latest)]  # even if it is gone


def _is_ours(path: Path) -> bool:
    """Recognise a checkpoint of ours; it may hold notes of a user's besides."""
    if path.name.startswith(".") or path.is_symlink() or not path.is_dir():
        return False
    return names_of_checkpoint(path) is not None and any(n in FILES for n in os.listdir(path))


def _read_pointer(folder: Path) -> str | None:
    """What `latest` names, if that can be a checkpoint of ours."""
    try:
        name = (folder / "latest").read_text(errors="replace").strip()
    except OSError:
        return None
    return name if NAME.fullmatch(name) else None


TO_START_ANEW = "delete the run folder or choose another name=..."


def find_latest_valid(
    folder: Path,
    world: World,
    say: Callable[[str], None],
    to_start_anew: str = TO_START_ANEW,
) -> tuple[Path, State] | None:
    """The newest checkpoint that is as it was written, agreed on by all ranks.

    Damaged ones are named and put aside. None where there never was one; ValueError where none is
    left, and for a checkpoint of another format.
    """
    (names, *_) = gather_objects(world, list_checkpoints(folder) if world.is_coordinator else [])
    damages = []
    for name in names:
        damage = find_corruption(folder / name, world)
        if not damage:
            return read_checkpoint(folder / name)
        damages.append(damage)
        say(f"{damage}; trying the one before")
        if world.is_coordinator:
            _put_aside(folder / name)
    aside = [path.name for path in folder.glob(".*.damaged") if PUT_ASIDE.fullmatch(path.name)]
    (aside, *_) = gather_objects(world, aside)
    damages += [f"{name} was put aside" for name in aside]
    if damages:
        raise ValueError(
            f"no checkpoint of {folder} is whole: {'; '.join(damages)}; to start anew, "
            f"{to_start_anew}"
        )
    return None


def find_corruption(checkpoint: Path, world: World) -> str:
    """What differs from what was written, in a sentence; each rank reads some of the files."""
    try:
        _, state = read_checkpoint(checkpoint)
        mine = _compare_share(checkpoint, state["files"], world)
    except (CorruptCheckpoint, OSError) as error:
        mine = str(error)
    return next((damage for damage in gather_objects(world, mine) if damage), "")


def load_tensors(checkpoint: Path, tensors: Tensors, world: World) -> None:
    """Fill the given tensors in place from the checkpoint; a DTensor takes its own rows."""
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(dict(tensors), storage_reader=reader, process_group=world.group)
        except dcp.api.CheckpointException as error:  # a BaseException, raised on all ranks
            sentence = f"checkpoint {checkpoint} cannot be loaded: {_causes(error)}"
            raise AllRanksError(sentence) from None


def prune(folder: Path, keep: int, keeps_always: Callable[[str], bool], world: World) -> None:
    """Delete all but the newest `keep` checkpoints and those that are kept always."""
    with raise_on_all_ranks(world, "deleting old checkpoints"):
        if world.is_coordinator:
            _clear_abandoned(folder)
            for old in list_checkpoints(folder)[keep:]:
                if not keeps_always(old):
                    remove_folder(folder / old, names_of_checkpoint)


def _clear_abandoned(folder: Path) -> None:
    """Remove what saves that were killed have left, of this revision and of earlier ones."""
    pattern = re.compile(rf"\.({NAMES_OF_OURS})(?:\.{TOKEN}\.(?:building|replaced)|\.unfinished)")
    for found in [found for name in os.listdir(folder) if (found := pattern.fullmatch(name))]:
        restore_folder(folder / found.group(1), names_of_checkpoint, FILES)
        if found.group(0).endswith(".unfinished"):
            remove_folder(folder / found.group(0), lambda _: FILES)


def _check_space(folder: Path, tensors: Tensors) -> None:
    needed = sum(t.numel() * t.element_size() for t in tensors.values()) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"it takes {needed / 1e6:,.1f} MB and {folder} has {free / 1e6:,.1f} MB left")


def _write_tensors(unfinished: Path, name: str, tensors: Tensors, world: World) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.save(dict(tensors), storage_writer=writer, process_group=world.group)
        except dcp.api.CheckpointException as error:  # a BaseException, raised on all ranks
            raise AllRanksError(f"writing checkpoint {name} failed: {_causes(error)}") from None


def _causes(error: dcp.api.CheckpointException) -> str:
    found = {f"rank {rank}: {wrapped[0]}" for rank, wrapped in error.failures.items()}
    return "; ".join(sorted(found))


def _sums_of(unfinished: Path, names: list[str]) -> dict[str, Any]:
    """Size and sum of some files, which are on the disk then."""
    files = [unfinished / name for name in names]
    for file in files:
        flush_file(file)
    return {file.name: {"bytes": file.stat().st_size, "sha256": sum_of(file)} for file in files}


def _compare_share(checkpoint: Path, files: dict[str, Any], world: World) -> str:
    # torch reads every one of them, whatever state.json says.
    if unknown := {file.name for file in checkpoint.glob("*.safetensors")} - files.keys():
        return f"checkpoint {checkpoint} is damaged: {min(unknown)} does not belong to it"
    for name in sorted(files)[world.rank :: world.size]:
        file, entry = checkpoint / name, files[name]
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise CorruptCheckpoint(f"it has {size:,} bytes instead of {entry['bytes']:,}")
            if sum_of(file) != entry["sha256"]:
                raise CorruptCheckpoint("its content is not what was written")
        except (OSError, CorruptCheckpoint) as error:
            why = error.strerror if isinstance(error, OSError) else error
            return f"checkpoint {checkpoint} is damaged: {name}: {why}"
    return ""


def _sum_of_state(state: State) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write_state(unfinished: Path, state: State) -> None:
    plain = json.loads(json.dumps(state))
    text = json.dumps({**plain, "sha256": _sum_of_state(plain)}, indent=1)
    write_file(unfinished / STATE, text)


def _put_aside(checkpoint: Path) -> None:
    """Under a name that is no checkpoint's, for someone to look at; where that can be done."""
    aside = checkpoint.with_name(f".{checkpoint.name}.damaged")
    move_folder(checkpoint, aside, names_of_checkpoint)


def _point_latest_at(folder: Path, name: str) -> None:
    write_file(folder / "latest", name + "\n", or_empty(is_pointer))
    flush_folder(folder)
