"""Worker processes for what costs more than Python can do in one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def open_processes(workers: int | None = None) -> ProcessPoolExecutor:
    """One a core for None. They are forks of a bare process, not of this one: what inherits DALI's
    or torch's locks without the threads that held them may wait for ever. None outlives this one,
    whatever ends it."""
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
