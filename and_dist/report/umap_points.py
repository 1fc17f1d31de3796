"""Compute UMAP in a process of its own. No torch.

The compiler that umap-learn uses takes as much memory as a network, which the process of the report
is spared.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 15
"""The largest number of neighbours that UMAP looks at for each point."""


def is_installed() -> bool:
    """Return whether umap-learn is installed, without importing it."""
    return find_spec("umap") is not None


def begin_umap(features_QD: NDArray[np.float32]) -> Future[NDArray[np.float32]]:
    """Start UMAP of features [Q, D]; return a future of points [Q, 2]."""
    return _process().submit(_fit, features_QD)


@functools.cache
def _process() -> ProcessPoolExecutor:
    """Return the process; it is kept, so that a followed page compiles UMAP only once."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)


def forget_process() -> None:
    """Let the next call start a new process: the current one may have been killed."""
    _process.cache_clear()


def _end_with_parent() -> None:
    """Make this process end with its parent, however that ends, and ignore Ctrl-C.

    The parent gets the interrupt too and reports it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        """End this process without any clean-up once the parent is gone."""
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _fit(features_QD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return points [Q, 2]; the seed is fixed, so equal features give equal points."""
    import umap

    count = min(NEIGHBOURS, len(features_QD) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that a seed allows one thread only
        mapper = umap.UMAP(n_neighbors=count, metric="cosine", random_state=0)
        return np.asarray(mapper.fit_transform(features_QD), np.float32)
