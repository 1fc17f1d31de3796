"""Worker processes for what costs more than Python can do in one."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor


def open_processes(workers: int | None = None) -> ProcessPoolExecutor:
    """One a core for None. A forked child that finds a dead DALI pipeline in its garbage dies of
    it or waits for its threads for ever, so none may be left."""
    gc.collect()
    return ProcessPoolExecutor(workers)
