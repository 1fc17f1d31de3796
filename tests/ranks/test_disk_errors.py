"""An error of one rank's disk is one error of all ranks, which ends them alike."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from and_dist.distributed.collectives import raise_on_all_ranks
from and_dist.distributed.launch_env import AllRanksDiskError, AllRanksError
from and_dist.distributed.watchdog import Paused
from and_dist.distributed.world import World
from and_dist.training.recovery import pause_on_disk_errors
from and_dist.utils.disk_errors import DiskError, naming_disk
from benchmarks.common.rank_pool import RankPool


def write(world: World, number: int) -> None:
    with raise_on_all_ranks(world, "writing it"), naming_disk(Path("a")):
        if world.rank == world.size - 1:
            raise OSError(number, os.strerror(number))


def fail_alone(world: World, number: int) -> tuple[str, str]:
    with pytest.raises(AllRanksError) as raised:
        write(world, number)
    return type(raised.value).__name__, str(raised.value)


@pytest.mark.parametrize("size", [1, 3])
def test_all_ranks_raise_the_error_of_one_disk(ranks: RankPool, size: int) -> None:
    said = f"writing it failed on rank {size - 1}: a cannot be written: Read-only file system"
    assert ranks.run(size, fail_alone, errno.EROFS) == [("AllRanksDiskError", said)] * size
    ((kind, _), *_) = ranks.run(size, fail_alone, errno.EACCES)
    assert kind == "AllRanksError"


def test_a_run_pauses_for_a_disk_and_for_nothing_else() -> None:
    for error, is_of_all in ((AllRanksDiskError("it is full"), True), (DiskError("full"), False)):
        with pytest.raises(Paused, match="full") as paused, pause_on_disk_errors():
            raise error
        assert paused.value.is_of_all_ranks == is_of_all
    with pytest.raises(AllRanksError), pause_on_disk_errors():
        raise AllRanksError("another fault")
