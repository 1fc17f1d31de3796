"""Measure all images of a listing in parallel: bytes, height and width, from their headers.

N all rows, X rows of one task.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from and_dist.data.image_headers import (
    Unreadable,
    check_pixels,
    size_of_file,
    size_of_piece,
)
from and_dist.data.importers.listing import Files, Members
from and_dist.data.processes import open_processes
from and_dist.data.stores import FileReader, Names

IMAGES_PER_TASK = 4096
"""The number of images that a worker process measures at a time."""


@dataclass(frozen=True)
class Measured:
    """Hold bytes and sides by row, and {row: reason} of bad images, whose sides are 0."""

    length_N: NDArray[np.int64]
    heights_N: NDArray[np.int32]
    widths_N: NDArray[np.int32]
    reasons: dict[int, str]


Progress = Callable[[int], None]
"""A function that is told how many more images are measured."""


def measure(
    content: Files | Members,
    workers: int,
    progress: Progress = lambda _: None,
    decode_mb: int | None = None,
) -> Measured:
    """Return bytes and sides of every image of a listing, measured by `workers` processes.

    Images that take more than `decode_mb` when they are decoded are bad. Rows are cut into tasks. A
    task carries its part of the columns and never all of them, because it is sent to another
    process.
    """
    count = len(content.names) if isinstance(content, Files) else len(content.file_N)
    table_N3 = np.zeros((count, 3), np.int64)
    reasons: dict[int, str] = {}
    tasks = list(_tasks(content, count, decode_mb))
    with _runner(workers, len(tasks)) as run:
        done = 0
        for found_X3, bad in run(tasks):
            table_N3[done : done + len(found_X3)] = found_X3
            reasons |= {done + at: reason for at, reason in bad.items()}
            done += len(found_X3)
            progress(len(found_X3))
    heights_N, widths_N = table_N3[:, 1].astype(np.int32), table_N3[:, 2].astype(np.int32)
    return Measured(table_N3[:, 0].copy(), heights_N, widths_N, reasons)


Table = tuple[NDArray[np.int64], dict[int, str]]
"""[X, 3] of bytes, height and width, and {position: reason} of the rows that are bad images."""
Task = Callable[[], Table]
"""A function without arguments that measures some rows, which a worker process can run."""


@contextmanager
def _runner(workers: int, num_tasks: int) -> Iterator[Callable[[list[Task]], Iterator[Table]]]:
    """Give a function that runs tasks in order, by processes or, if that is enough, here."""
    if workers == 1 or num_tasks == 1:
        yield lambda tasks: (task() for task in tasks)
        return
    with open_processes(workers) as executor:
        try:
            yield lambda tasks: executor.map(_call, tasks)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _call(task: Task) -> Table:
    """Run one task; executor.map needs a function that can be pickled."""
    return task()


def _tasks(content: Files | Members, count: int, decode_mb: int | None) -> Iterator[Task]:
    """Yield the tasks that measure all images of a listing, in order."""
    for start in range(0, count, IMAGES_PER_TASK):
        rows = slice(start, min(start + IMAGES_PER_TASK, count))
        if isinstance(content, Files):
            names = content.names.part(rows.start, rows.stop)
            yield partial(_measure_files, content.root, names, decode_mb)
        else:
            columns = content.file_N[rows], content.offset_N[rows], content.length_N[rows]
            yield partial(_measure_members, content.archives, *columns, decode_mb)


def _measure_files(root: Path, names: Names, decode_mb: int | None) -> Table:
    """Measure images that are files of their own."""
    found_X3 = np.zeros((len(names), 3), np.int64)
    reasons: dict[int, str] = {}
    base = os.fspath(root) + os.sep
    for at in range(len(names)):
        path = base + names[at]
        try:
            length, height, width = size_of_file(path)
            check_pixels(height, width, decode_mb)
            found_X3[at] = length, height, width
        except Unreadable as error:
            reasons[at] = str(error)
    return found_X3, reasons


def _measure_members(
    archives: tuple[Path, ...],
    file_X: NDArray[np.int32],
    offset_X: NDArray[np.int64],
    length_X: NDArray[np.int64],
    decode_mb: int | None,
) -> Table:
    """Measure images that lie in archives, from their first bytes where these suffice."""
    reader = FileReader(archives)
    found_X3 = np.zeros((len(file_X), 3), np.int64)
    reasons: dict[int, str] = {}
    for at, place in enumerate(
        zip(file_X.tolist(), offset_X.tolist(), length_X.tolist(), strict=True)
    ):
        file, offset, length = place
        try:
            size = size_of_piece(reader.piece(file, offset, length))
            check_pixels(*size, decode_mb)
            found_X3[at] = length, *size
        except (Unreadable, OSError) as error:
            reasons[at] = str(error)
    return found_X3, reasons
