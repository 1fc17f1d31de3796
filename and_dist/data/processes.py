"""Start worker processes, for work that Python's threads cannot run in parallel."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor


def open_processes(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of worker processes, one a core for None, that end with this process.

    They are forked from a bare server process, not from this one: a fork inherits the locks of DALI
    and torch without the threads that hold them, and may wait for them for ever.
    """
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Start a thread that ends this worker as soon as its parent process has ended.

    Warnings of libraries are not shown: an image that cannot be used is named by the parent.
    """
    warnings.simplefilter("ignore")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
