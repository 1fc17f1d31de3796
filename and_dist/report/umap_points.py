"""UMAP in a process of its own: what compiles it takes as much memory as a network. No torch."""

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


def is_installed() -> bool:
    return find_spec("umap") is not None


def begin_umap(features_QD: NDArray[np.float32]) -> Future[NDArray[np.float32]]:
    """[Q, 2], some time."""
    return _process().submit(_fit, features_QD)


@functools.cache
def _process() -> ProcessPoolExecutor:
    """Kept: a page that is followed compiles once."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)


def forget_process() -> None:
    """The next one starts another: this one may be gone."""
    _process.cache_clear()


def _end_with_parent() -> None:
    """However that ends; and what a terminal interrupts is the parent's to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _fit(features_QD: NDArray[np.float32]) -> NDArray[np.float32]:
    import umap

    count = min(NEIGHBOURS, len(features_QD) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed leaves one thread
        mapper = umap.UMAP(n_neighbors=count, metric="cosine", random_state=0)
        return np.asarray(mapper.fit_transform(features_QD), np.float32)
