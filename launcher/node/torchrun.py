"""torchrun (torch.distributed.run) with two things more: it writes down how its ranks ended, and
ends soon those beside one that failed.

python -m launcher.node.torchrun FILE [torchrun's arguments]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from and_dist.utils.owned_files import read_json, write_file

SECONDS_TO_END = 4
"""For ranks beside one that failed. torchrun gives them 30, and has no option for that; those that
it was itself told to end have their 30 to save in."""


def main() -> None:
    ends, arguments = Path(sys.argv[1]), sys.argv[2:]
    PContext.close.__defaults__ = (None, SECONDS_TO_END)
    try:
        run.main(arguments)
    except ChildFailedError as error:
        write_file(ends, json.dumps(exit_codes(error.failures)), is_exit_codes)
        sys.exit(1)


def is_exit_codes(path: Path) -> bool:
    """Recognise what an earlier agent of the same start has written."""
    codes = read_json(path)
    return isinstance(codes, dict) and all(rank.isdecimal() for rank in codes)


def exit_codes(failures: dict[int, ProcessFailure]) -> dict[int, int]:
    """By rank; without those that had to be killed, for they are no cause."""
    first = min(failure.timestamp for failure in failures.values())
    return {
        rank: failure.exitcode
        for rank, failure in failures.items()
        if failure.timestamp < first + SECONDS_TO_END
    }


if __name__ == "__main__":
    main()
