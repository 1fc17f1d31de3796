"""Write, verify and read checkpoints: tensors as safetensors, the rest as JSON.

    RUN/checkpoints/r01-e0003/          after 3 epochs of round 1: shard-*.safetensors, state.json
    RUN/checkpoints/r01-e0003-s000120/  120 steps later
    RUN/checkpoints/latest              the name of the newest valid one

Nothing in a checkpoint is ever executed. A folder is written under another name, flushed, then
renamed; `latest` moves last, so at any moment it names a whole checkpoint. state.json holds size
and sha256 of every file and of itself, and all are compared before anything is loaded. The bank is
cut along its rows, and loads on any number of ranks.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from and_dist.checkpoint.names import (
    FILES,
    NAMES_OF_OURS,
    NEVER_READ,
    STATE,
    State,
    Tensors,
    is_pointer,
    list_checkpoints,
    list_misnamed,
    names_of_checkpoint,
    read_pointer,
)
from and_dist.checkpoint.saved_state import check_state
from and_dist.checkpoint.tensor_files import BANK, TensorFiles, write_share
from and_dist.distributed.collectives import gather_objects, on_coordinator, raise_on_all_ranks
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank
from and_dist.runs.records import parse, say_damage
from and_dist.utils.disk_errors import DiskError, describe, room_left
from and_dist.utils.owned_files import (
    TOKEN,
    check_file,
    kind_of,
    make_folder,
    or_empty,
    sum_of,
    write_file,
)
from and_dist.utils.owned_folders import (
    NewFolder,
    flush_folder,
    move_folder,
    remove_folder,
    restore_folder,
)
from and_dist.utils.plain_files import open_plain, read_plain

FORMAT = 3
PUT_ASIDE = re.compile(rf"\.({NAMES_OF_OURS})\.damaged")
SPARE_BYTES = 1_000_000
"""Room on the disk for state.json, the headers of the shards, and what a file system adds."""


class CorruptCheckpoint(ValueError):
    """Says that a checkpoint's content is not what was written."""


def save_checkpoint(
    folder: Path,
    name: str,
    tensors: Tensors,
    state: State,
    world: World,
    bank: MemoryBank | None = None,
) -> None:
    """Write one checkpoint with all ranks; whatever happens, the older ones stay whole."""
    building: NewFolder | None = None

    def begin() -> str:
        nonlocal building
        make_folder(folder)
        _check_space(folder / name, tensors, bank)
        check_file(folder / "latest", or_empty(is_pointer))
        building = NewFolder(folder / name, names_of_checkpoint, FILES, remedy=NEVER_READ)
        return str(building.path)

    def finish() -> None:
        assert building is not None
        _write_state(path, {"format": FORMAT, "name": name, **state, "files": files})
        building.publish()
        _point_latest_at(folder, name)

    path = Path(on_coordinator(world, f"making room for checkpoint {name}", begin))
    try:
        with raise_on_all_ranks(world, f"writing checkpoint {name}"):
            mine = write_share(path, tensors, bank, world.rank, world.size)
        files = {
            file: entry for share in gather_objects(world, mine) for file, entry in share.items()
        }
        on_coordinator(world, f"finishing checkpoint {name}", finish)
    except AllRanksError:
        if building is not None:
            building.discard()
        raise


def read_checkpoint(checkpoint: Path, needs: str = "") -> tuple[Path, State]:
    """Return a checkpoint and its state.json, which has to have the key `needs`.

    Raise CorruptCheckpoint where it cannot be read.
    """
    if kind_of(checkpoint) != "folder":
        others = set(list_checkpoints(checkpoint.parent)) - {checkpoint.name}
        raise CorruptCheckpoint(
            f"there is no checkpoint {checkpoint}; {checkpoint.parent} has: "
            f"{', '.join(sorted(others)) or 'none'}"
        )
    try:
        state = parse(read_plain(checkpoint / STATE))
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(
            f"checkpoint {checkpoint} cannot be read: {STATE}: {error}"
        ) from None
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
    try:
        if needs and needs not in state:
            raise ValueError(f"it has no {needs}")
        return checkpoint, check_state(state)
    except ValueError as error:
        raise CorruptCheckpoint(
            f"checkpoint {checkpoint} cannot be read: {STATE}: {error}"
        ) from None


def read_latest(folder: Path, needs: str = "") -> tuple[Path, State] | None:
    """Return the newest checkpoint and its state.json, None where there is none."""
    names = list_and_look(folder)
    return read_checkpoint(folder / names[0], needs) if names else None


def list_and_look(folder: Path) -> list[str]:
    """Return the names of a folder's checkpoints.

    Say where `latest` does not name the newest, and where a state.json is another checkpoint's.
    """
    names, pointer = list_checkpoints(folder), read_pointer(folder)
    latest = folder / "latest"
    for name in list_misnamed(folder):
        say_damage(f"{folder / name} is left out: its {STATE} is not the one of this checkpoint")
    if pointer is None:
        if names:
            say_damage(f"{latest} names no checkpoint, and {names[0]} is the newest")
    elif pointer not in names:
        say_damage(f"{latest} names {pointer}, which is no checkpoint")
    elif not (folder / pointer).is_dir():
        say_damage(f"{latest} names {pointer}, which is not there")
    elif (newest := max(names, key=_numbers_in)) != pointer:
        say_damage(f"{latest} names {pointer}, and there is a newer one, {newest}")
    return names


def _numbers_in(name: str) -> list[int]:
    """Return the numbers in the name of a checkpoint, by which a newer one is higher."""
    return [int(number) for number in re.findall(r"\d+", name)]


TO_START_ANEW = "delete the run folder or choose another name=..."


def find_latest_valid(
    folder: Path,
    world: World,
    say: Callable[[str], None],
    to_start_anew: str = TO_START_ANEW,
    needs: str = "",
) -> tuple[Path, State] | None:
    """Return the newest valid checkpoint and its state.json, the same on all ranks.

    A valid one has the key `needs`. Corrupt ones are named and put aside. Return None where there
    never was a checkpoint; raise ValueError where none of those there are is valid, or where one
    has another format.
    """
    listing = f"listing the checkpoints of {folder}"
    damages = []
    for name in on_coordinator(world, listing, lambda: list_and_look(folder)):
        damage = find_corruption(folder / name, world, needs)
        if not damage:
            return read_checkpoint(folder / name)
        damages.append(damage)
        say(f"{damage}; trying the one before")
        on_coordinator(world, f"putting {name} aside", partial(_put_aside, folder / name))
    aside = on_coordinator(world, listing, lambda: _names_put_aside(folder))
    damages += [f"{name} was put aside" for name in aside]
    if damages:
        raise ValueError(
            f"no checkpoint of {folder} is whole: {'; '.join(damages)}; to start anew, "
            f"{to_start_anew}"
        )
    return None


def find_corruption(checkpoint: Path, world: World, needs: str = "") -> str:
    """Return a sentence about what differs from what was written, "" for a valid checkpoint.

    Each rank compares some of the files.
    """
    try:
        _, state = read_checkpoint(checkpoint, needs)
        mine = _compare_share(checkpoint, state["files"], world)
    except (CorruptCheckpoint, OSError) as error:
        mine = str(error)
    return next((damage for damage in gather_objects(world, mine) if damage), "")


def load_tensors(
    checkpoint: Path, tensors: Tensors, world: World, bank: MemoryBank | None = None
) -> None:
    """Fill the given tensors, and this rank's rows of the bank, in place from the checkpoint."""
    with raise_on_all_ranks(world, f"loading checkpoint {checkpoint}"):
        files = TensorFiles(checkpoint)
        for name, tensor in tensors.items():
            files.fill(name, tensor)
        if bank is not None:
            files.fill(BANK, bank.features_SD, bank.start, bank.num_rows)


def prune(folder: Path, keep: int, keeps_always: Callable[[str], bool], world: World) -> None:
    """Remove all but the newest `keep` checkpoints and those that are always kept."""

    def remove_old() -> None:
        _clear_abandoned(folder)
        for old in list_checkpoints(folder)[keep:]:
            if not keeps_always(old):
                remove_folder(folder / old, names_of_checkpoint)

    on_coordinator(world, "deleting old checkpoints", remove_old)


def _clear_abandoned(folder: Path) -> None:
    """Remove what killed saves have left, those of earlier revisions included."""
    pattern = re.compile(rf"\.({NAMES_OF_OURS})(?:\.{TOKEN}\.(?:building|replaced)|\.unfinished)")
    for found in [found for name in os.listdir(folder) if (found := pattern.fullmatch(name))]:
        restore_folder(folder / found.group(1), names_of_checkpoint, FILES)
        if found.group(0).endswith(".unfinished"):
            remove_folder(folder / found.group(0), lambda _: FILES)


def _check_space(checkpoint: Path, tensors: Tensors, bank: MemoryBank | None) -> None:
    """Raise DiskError where the disk has no room for the tensors."""
    needed = sum(tensor.nbytes for tensor in tensors.values()) + SPARE_BYTES
    if bank is not None:
        rows_SD = bank.features_SD
        needed += bank.num_rows * rows_SD.shape[1] * rows_SD.element_size()
    left = room_left(checkpoint)
    if left is not None and needed > left:
        raise DiskError(describe(checkpoint, errno.ENOSPC, needed))


def _compare_share(checkpoint: Path, files: dict[str, Any], world: World) -> str:
    """Compare this rank's share of the files with their sums; return a sentence, or ""."""
    # Every safetensors file of the folder is read, whether state.json names it or not.
    if unknown := {file.name for file in checkpoint.glob("*.safetensors")} - files.keys():
        return f"checkpoint {checkpoint} is damaged: {min(unknown)} does not belong to it"
    for name in sorted(files)[world.rank :: world.size]:
        file, entry = checkpoint / name, files[name]
        try:
            with open_plain(file) as content:
                size = os.fstat(content.fileno()).st_size
            if size != entry["bytes"]:
                raise CorruptCheckpoint(f"it has {size:,} bytes instead of {entry['bytes']:,}")
            if sum_of(file) != entry["sha256"]:
                raise CorruptCheckpoint("its content is not what was written")
        except (OSError, CorruptCheckpoint) as error:
            why = error.strerror if isinstance(error, OSError) else error
            return f"checkpoint {checkpoint} is damaged: {name}: {why}"
    return ""


def _sum_of_state(state: State) -> str:
    """Return the sum that state.json holds of its own content."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write_state(unfinished: Path, state: State) -> None:
    """Write state.json with its own sum."""
    plain = json.loads(json.dumps(state))
    text = json.dumps({**plain, "sha256": _sum_of_state(plain)}, indent=1)
    write_file(unfinished / STATE, text)


def _put_aside(checkpoint: Path) -> None:
    """Rename a corrupt checkpoint, so that it is not chosen again and can be looked at."""
    aside = checkpoint.with_name(f".{checkpoint.name}.damaged")
    move_folder(checkpoint, aside, names_of_checkpoint)


def _names_put_aside(folder: Path) -> list[str]:
    """Return the names of the corrupt checkpoints that were put aside."""
    names = [path.name for path in folder.glob(".*.damaged")]
    return [name for name in names if PUT_ASIDE.fullmatch(name)]


def _point_latest_at(folder: Path, name: str) -> None:
    """Write the name of the newest checkpoint to `latest`, and flush the folder."""
    write_file(folder / "latest", name + "\n", or_empty(is_pointer))
    flush_folder(folder)
