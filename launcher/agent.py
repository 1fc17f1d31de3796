"""torchrun (torch.distributed.run) with one thing more: it writes down how its ranks ended.

python -m launcher.agent FILE [torchrun's arguments]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    ends, arguments = Path(sys.argv[1]), sys.argv[2:]
    try:
        run.main(arguments)
    except ChildFailedError as error:
        exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        ends.write_text(json.dumps(exit_codes))
        sys.exit(1)


if __name__ == "__main__":
    main()
