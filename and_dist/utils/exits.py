"""End a process without taking its modules apart."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable


def run_and_leave(main: Callable[[], None]) -> None:
    """Run a program, and end its process with no work beyond what was registered for its end.

    Python would then take apart every module: after `import torch` alone this takes 0.7 s, after a
    run 1.5 s, for which torchrun and whoever started it wait. Threads are still joined and
    functions of atexit called, since this is the last of them.
    """
    status = 1

    def leave() -> None:
        os._exit(status if _flush() else status or 1)

    atexit.register(leave)
    try:
        main()
        status = 0
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            status = ended.code or 0
        raise
    except KeyboardInterrupt:
        status = 130
        raise


def _flush() -> bool:
    """Write what has been printed; say so and return False if it cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if sys.stderr is not None and not isinstance(error, BrokenPipeError):
            print(f"what was printed could not be written: {error}", file=sys.stderr, flush=True)
        return False
    return True
