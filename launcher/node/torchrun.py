"""Run torchrun (torch.distributed.run) as a start of ours needs it.

Its nodes meet by a rendezvous of ours, how its ranks ended is recorded, and its grace period, the
time that it gives the ranks beside one that failed, is shorter.

python -m launcher.node.torchrun FILE [torchrun's arguments]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError

from and_dist.utils.disk_errors import DiskError
from and_dist.utils.exits import run_and_leave
from and_dist.utils.owned_files import read_json, write_file
from launcher.node import rendezvous

SECONDS_TO_END = 4
"""The time for ranks beside one that failed. torchrun's default is 30 s, and no option changes it.
When torchrun itself is told to end, its ranks keep their 30 s to save."""


def main() -> None:
    """Run torchrun with the arguments after FILE; exit with code 1 on a failure, whose exit codes
    FILE then holds."""
    ends, arguments = Path(sys.argv[1]), sys.argv[2:]
    rendezvous.register()
    # Every node has as many ranks, so torchrun need not read from the store who has how many.
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    # close(death_sig=None, timeout=30) of torch 2.15: only its default can shorten the period.
    PContext.close.__defaults__ = (None, SECONDS_TO_END)
    try:
        run.main(arguments)
    except ChildFailedError as error:
        try:
            write_file(ends, json.dumps(exit_codes(error.failures)), is_exit_codes)
        except DiskError as refused:
            sys.exit(f"how the ranks ended is not recorded: {refused}")
        sys.exit(1)
    except RendezvousError as error:
        sys.exit(f"the nodes did not meet: {error}")


def is_exit_codes(path: Path) -> bool:
    """Recognise the exit codes that an earlier agent of the same start has written."""
    codes = read_json(path)
    return isinstance(codes, dict) and all(rank.isdecimal() for rank in codes)


def exit_codes(failures: dict[int, ProcessFailure]) -> dict[int, int]:
    """Return the exit codes by rank, without ranks that ended only after the grace period and had
    to be killed: those are not the cause."""
    first = min(failure.timestamp for failure in failures.values())
    return {
        rank: failure.exitcode
        for rank, failure in failures.items()
        if failure.timestamp < first + SECONDS_TO_END
    }


if __name__ == "__main__":
    run_and_leave(main)
