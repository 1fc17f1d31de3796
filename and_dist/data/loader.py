"""Streams of Batch(images, rows): training in the order of an epoch, features in any order.

B images of one rank's batch; a row of -1 is padding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from and_dist.config import DataConfig
from and_dist.data.augment import Views, centre_views, training_views
from and_dist.data.index import ImageIndex
from and_dist.data.order import LocalRows, Order, Rows
from and_dist.data.pipeline import GraphSpec, ImagePipeline, Request
from and_dist.world import World


class Batch(NamedTuple):
    images_BCHW: Tensor
    rows_B: Tensor


class TrainingLoader:
    """This rank's part of every global batch, augmented by (seed, epoch, row)."""

    def __init__(self, index: ImageIndex, config: DataConfig, order: Order, world: World) -> None:
        self.order = order
        self._index = index
        self._config = config
        self._world = world
        largest = len(order.local_rows(0, 0, 0, world.size).rows_B)
        self._pipeline = ImagePipeline(
            GraphSpec(config, index.in_memory, True, largest, torch.get_num_threads())
        )

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from some step on."""
        rank, size = self._world.rank, self._world.size
        steps = range(first_step, self.order.steps_per_epoch)
        plan = (self.order.local_rows(epoch, step, rank, size) for step in steps)

        def views_of(rows_B: Rows) -> Views:
            sizes = self._index.heights_N[rows_B], self._index.widths_N[rows_B]
            return training_views(self._config, self.order.seed, epoch, rows_B, *sizes)

        return _stream(self._pipeline, self._index, plan, views_of, self._world.device)


class FeatureLoader:
    """Images as the test transform shows them, any rows in any order."""

    def __init__(
        self, index: ImageIndex, config: DataConfig, batch_size: int, device: torch.device
    ) -> None:
        self._index = index
        self._config = config
        self._batch_size = batch_size
        self.device = device
        self._pipeline = ImagePipeline(
            GraphSpec(config, index.in_memory, False, batch_size, torch.get_num_threads())
        )

    def batches(self, rows: Rows) -> Iterator[Batch]:
        starts = range(0, len(rows), self._batch_size)
        pieces = (rows[start : start + self._batch_size] for start in starts)
        plan = (LocalRows(piece, piece) for piece in pieces)
        return _stream(self._pipeline, self._index, plan, self._views, self.device)

    def _views(self, rows_B: Rows) -> Views:
        return centre_views(
            self._config, self._index.heights_N[rows_B], self._index.widths_N[rows_B]
        )


def _stream(
    pipeline: ImagePipeline,
    index: ImageIndex,
    plan: Iterable[LocalRows],
    views_of: Callable[[Rows], Views],
    device: torch.device,
) -> Iterator[Batch]:
    waiting: deque[Rows] = deque()

    def requests() -> Iterator[Request]:
        for local in plan:
            waiting.append(local.rows_B)
            images = [index.images[row] for row in local.images_B]
            yield Request(images, views_of(local.images_B))

    for images_BCHW in pipeline.stream(requests()):
        rows_B = torch.from_numpy(waiting.popleft())
        yield Batch(images_BCHW.to(device, non_blocking=True), rows_B.to(device, non_blocking=True))
