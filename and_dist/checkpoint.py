"""Checkpoints: tensors as safetensors through torch's distributed checkpoint, the rest as JSON.

    RUN/checkpoints/r01-e003/   shard-*.safetensors and state.json
    RUN/checkpoints/latest      the name of the newest whole one

Nothing in one is ever executed. A folder is written under another name, flushed, then renamed;
`latest` moves last, so at any moment it names a whole checkpoint. The bank is a DTensor cut along
its rows, which loads on any number of ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from and_dist.bank import BankShard
from and_dist.collectives import failing_together
from and_dist.layout import SharedFailure
from and_dist.world import World

FORMAT = 1
Tensors = dict[str, Tensor]


def as_sharded(bank: BankShard, world: World) -> DTensor:
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


def save_checkpoint(
    folder: Path, name: str, tensors: Tensors, state: dict[str, Any], world: World
) -> None:
    """Write one checkpoint together; whatever happens, an older one stays whole."""
    unfinished = folder / f".{name}.unfinished"
    with failing_together(world, f"making room for checkpoint {name}"):
        if world.is_coordinator:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
    writer = dcp.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(tensors), storage_writer=writer, process_group=world.group)
    with failing_together(world, f"finishing checkpoint {name}"):
        if world.is_coordinator:
            text = json.dumps({"format": FORMAT, **state}, indent=1)
            (unfinished / "state.json").write_text(text)
            for file in unfinished.iterdir():
                _flush(file)
            shutil.rmtree(folder / name, ignore_errors=True)
            unfinished.rename(folder / name)
            _flush(folder)
            _point_latest_at(folder, name)


def read_latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and its state.json, None where there is none."""
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    return read_checkpoint(folder / pointer.read_text().strip())


def read_checkpoint(checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint and its state.json; ValueError where there is none to read."""
    if not checkpoint.is_dir():
        whole = sorted(state.parent.name for state in checkpoint.parent.glob("[!.]*/state.json"))
        raise ValueError(
            f"there is no checkpoint {checkpoint}; {checkpoint.parent} has: "
            f"{', '.join(whole) or 'none'}"
        )
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {checkpoint} cannot be read: {error}") from None
    if state.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {checkpoint} is of format {state.get('format')}, "
            f"this program reads format {FORMAT}"
        )
    return checkpoint, state


def load_tensors(checkpoint: Path, tensors: Tensors, world: World) -> None:
    """Fill the given tensors in place from the checkpoint; a DTensor takes its own rows."""
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(dict(tensors), storage_reader=reader, process_group=world.group)
        except dcp.api.CheckpointException as error:  # a BaseException, raised on all ranks
            causes = {str(wrapped[0]) for wrapped in error.failures.values()}
            sentence = f"checkpoint {checkpoint} cannot be loaded: {'; '.join(sorted(causes))}"
            raise SharedFailure(sentence) from None


def prune(folder: Path, keep: int, keep_always: set[str], world: World) -> None:
    """Delete all but the newest `keep` checkpoints and the named ones."""
    with failing_together(world, "deleting old checkpoints"):
        if world.is_coordinator:
            whole = sorted(path for path in folder.iterdir() if (path / "state.json").exists())
            whole = [path for path in whole if not path.name.startswith(".")]
            for old in whole[: -keep or None]:
                if old.name not in keep_always:
                    shutil.rmtree(old)


def _point_latest_at(folder: Path, name: str) -> None:
    pointer = folder / ".latest"
    pointer.write_text(name + "\n")
    _flush(pointer)
    pointer.rename(folder / "latest")
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
