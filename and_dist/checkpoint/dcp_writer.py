"""Write tensors as safetensors with all ranks, by torch's DCP.

To load DCP takes most of a second; `storage` imports this module when something is saved.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from and_dist.checkpoint.names import Tensors
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.world import World
from and_dist.method.memory_bank import MemoryBank


def write_tensors(folder: Path, tensors: Tensors, bank: MemoryBank | None, world: World) -> None:
    """Write all tensors; each rank writes its rows of the bank, and its share of the others."""
    content: dict[str, Tensor] = dict(tensors)
    if bank is not None:
        content["bank"] = _as_sharded(bank, world)
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.save(content, storage_writer=writer, process_group=world.group)
        except dcp.api.CheckpointException as error:  # a BaseException, raised on all ranks
            raise AllRanksError(_causes(error)) from None


def _as_sharded(bank: MemoryBank, world: World) -> DTensor:
    """Return the whole bank as torch's distributed tensor, on the CPU.

    It shares the memory of a shard that is on the CPU already.
    """
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


def _causes(error: dcp.api.CheckpointException) -> str:
    """Return what failed on each rank, in one line."""
    found = {f"rank {rank}: {wrapped[0]}" for rank, wrapped in error.failures.items()}
    return "; ".join(sorted(found))
