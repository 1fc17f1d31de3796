"""Load batches of images and their rows, in the order of an epoch or in any order.

Order and augmentation are functions of the step. After a broken image has ended a pipeline, it is
therefore rebuilt at the same step, without that image.

B images of one rank's batch; a row of -1 weighs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from and_dist.config.schema import DataConfig
from and_dist.data.augment import CENTRE, I32, Views, plain_views, training_views
from and_dist.data.encoded_images import make_decodable
from and_dist.data.image_headers import RGB_BYTES, Unreadable, check_pixels, most_bytes
from and_dist.data.index import ImageIndex
from and_dist.data.order import LocalRows, Order, Rows
from and_dist.data.pipeline import (
    DecodeError,
    GraphSpec,
    ImagePipeline,
    PendingBatch,
    explain_failures,
)
from and_dist.data.stores import U8, Box, FileStore, MemoryStore
from and_dist.data.unreadable import BadImages
from and_dist.distributed.world import World

BATCHES_AHEAD = 4
"""The number of batches whose bytes are read before DALI asks for them."""
ViewsOf = Callable[[int, Rows], Views]
"""A function from a step and its rows to the views of these rows."""
RandomViews = Callable[[DataConfig, int, int, Rows, I32, I32], Views]
"""A function from a config, a seed, an epoch, rows, their heights and their widths to views."""


class Batch(NamedTuple):
    """Hold the images [B, 3, side, side] and rows [B] of one step.

    On a CPU they are valid only until the next batch is requested: images are not copied out of
    DALI.
    """

    images_BCHW: Tensor
    rows_B: Tensor


class Part(NamedTuple):
    """Hold rows of one step that are read and decoded together."""

    local: LocalRows
    decoded_bytes: int
    """The bytes of all pixels of their images."""
    is_last: bool
    """False if more parts of the step follow."""


class Reading(NamedTuple):
    """Holds a part that a thread reads."""

    batch: Future[PendingBatch]
    decoded_bytes: int

    @property
    def num_bytes(self) -> int:
        """Return the memory of its files, or of its pixels while it is being read.

        Files can be as large as their pixels, but seldom are.
        """
        is_read = self.batch.done() and self.batch.exception() is None
        return self.batch.result().file_bytes if is_read else self.decoded_bytes


class BatchStream:
    """Build batches of an index from a plan of rows and views for each step."""

    def __init__(self, index: ImageIndex, spec: GraphSpec, bad: BadImages) -> None:
        """Build the DALI pipeline and start the threads that read image bytes."""
        self._index = index
        self._spec = spec
        self._bad = bad
        self._pipeline = ImagePipeline(spec)
        self._readers = ThreadPoolExecutor(max(2, spec.threads))

    def batches(
        self, steps: range, plan: Callable[[int], LocalRows], views_of: ViewsOf
    ) -> Iterator[Batch]:
        """Yield one batch a step. Images of a step that cannot be read count as padding.

        `plan` gives the rows of a step, `views_of` the views of its images. Raise RuntimeError if
        DALI fails although every image in flight decodes alone, or if `bad` tells the run to stop.
        """
        while len(steps):
            pending = self._read_ahead(steps, plan, views_of)
            try:
                for batch in self._whole_steps(pending):
                    steps = steps[1:]
                    yield batch
            except DecodeError as error:
                if not self._find_bad():
                    raise RuntimeError(f"reading images failed: {error}") from None

    def _whole_steps(self, pending: Iterator[PendingBatch]) -> Iterator[Batch]:
        """Yield one batch a step, of which `pending` may hold several parts."""
        parts: list[Batch] = []
        for batch, images_BCHW in self._pipeline.stream(pending):
            part = Batch(images_BCHW, torch.from_numpy(batch.local.rows_B))
            if parts or not batch.is_last:
                # DALI uses the memory again for the next part.
                parts.append(part._replace(images_BCHW=images_BCHW.clone()))
                if not batch.is_last:
                    continue
                part = Batch(*map(torch.cat, zip(*parts, strict=True)))
                parts.clear()
            yield part._replace(rows_B=_send(part.rows_B, self._spec.device))

    def _find_bad(self) -> bool:
        """Decode every image of the batches in flight alone, and add those that fail to the bad.

        DALI's error does not say which image failed. Return whether there are any.
        """
        found: dict[int, str] = {}
        for batch in self._pipeline.in_flight:
            if batch.is_blank:
                continue
            found |= explain_failures(self._spec, batch)
        self._bad.add(found)
        return bool(found)

    def _read_ahead(
        self, steps: range, plan: Callable[[int], LocalRows], views_of: ViewsOf
    ) -> Iterator[PendingBatch]:
        """Yield batches in order, their bytes read by threads some batches ahead."""
        reading: deque[Reading] = deque()
        for step in steps:
            for part in self._parts_of(plan(step)):
                batch = self._readers.submit(self._read_part, step, part, views_of)
                reading.append(Reading(batch, part.decoded_bytes))
                while len(reading) == BATCHES_AHEAD or (
                    sum(one.num_bytes for one in reading) > self._spec.decode_bytes / 4
                ):
                    yield reading.popleft().batch.result()
        while reading:
            yield reading.popleft().batch.result()

    def _parts_of(self, local: LocalRows) -> Iterator[Part]:
        """Cut the rows of a step into parts, of which two may be decoded at once."""
        heights_B, widths_B = (
            sides_N[local.images_B].astype(np.int64)
            for sides_N in (self._index.heights_N, self._index.widths_N)
        )
        sizes_B = RGB_BYTES * heights_B * widths_B
        most = self._spec.decode_bytes / 2
        first, size = 0, 0
        for at, more in enumerate(sizes_B.tolist() if sizes_B.sum() > most else ()):
            if at > first and size + more > most:
                yield Part(local.part(first, at), size, is_last=False)
                first, size = at, 0
            size += more
        rest = local.part(first, len(sizes_B))
        yield Part(rest, int(sizes_B[first:].sum()), is_last=True)

    def _read_part(self, step: int, part: Part, views_of: ViewsOf) -> PendingBatch:
        """Read the images of a step, or of a part of it.

        If an image cannot be read, another of the batch stands in for it, and all are read again.
        """
        local = part.local
        while True:
            local = self._bad.stand_in(local)
            views = views_of(step, local.images_B)
            fetched, failures = self._fetch(local.images_B, views)
            if not failures:
                return PendingBatch(local, fetched, views, part.decoded_bytes, part.is_last)
            self._bad.add(failures)

    def _fetch(self, rows_B: Rows, views: Views) -> tuple[list[U8], dict[int, str]]:
        """Return the bytes of each image, and {row: error message} of those that fail."""
        fetched, failures = [], {}
        boxes = np.concatenate([views.start_B2, views.shape_B2], axis=1).tolist()
        for row, box in zip(rows_B.tolist(), boxes, strict=True):
            try:
                fetched.append(self._fetch_one(row, Box(*box)))
            except Unreadable as error:
                failures[row] = str(error)
            except OSError as error:
                failures[row] = f"it cannot be read: {error.strerror or error}"
        return fetched, failures

    def _fetch_one(self, row: int, box: Box) -> U8:
        """Return an encoded image that DALI can be given, or the pixels in a box."""
        store = self._index.store
        if store.kind == "pixels":
            assert not isinstance(store, FileStore)
            return store.fetch(row, box)
        assert not isinstance(store, MemoryStore)
        sides = int(self._index.heights_N[row]), int(self._index.widths_N[row])
        check_pixels(*sides, self._spec.data.decode_mb)
        encoded = store.read(row, most_bytes(*sides))
        return np.frombuffer(make_decodable(encoded, *sides), dtype=np.uint8)


def _send(rows_B: Tensor, device: torch.device) -> Tensor:
    """Return row numbers on a device; from pinned memory a GPU takes them without a wait."""
    if device.type == "cpu":
        return rows_B
    return rows_B.pin_memory().to(device, non_blocking=True)


class TrainingLoader:
    """Load this rank's part of every global batch, augmented by (seed, epoch, row)."""

    def __init__(
        self,
        index: ImageIndex,
        config: DataConfig,
        order: Order,
        world: World,
        bad: BadImages,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build the stream of batches for this rank."""
        self.order = order
        self._index = index
        self._config = config
        self._world = world
        # DALI is told the largest batch; no step of an epoch has more rows than the first.
        largest = len(order.local_rows(0, 0, 0, world.size).rows_B)
        spec = GraphSpec(
            config, index.store.kind, True, largest, torch.get_num_threads(), world.device, dtype
        )
        self._stream = BatchStream(index, spec, bad)

    def batches(
        self, epoch: int, first_step: int = 0, random_views: RandomViews = training_views
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch, from `first_step` on, with views by `random_views`."""
        rank, size = self._world.rank, self._world.size

        def plan(step: int) -> LocalRows:
            return self.order.local_rows(epoch, step, rank, size)

        def views_of(_: int, rows_B: Rows) -> Views:
            sides = self._index.heights_N[rows_B], self._index.widths_N[rows_B]
            return random_views(self._config, self.order.seed, epoch, rows_B, *sides)

        return self._stream.batches(range(first_step, self.order.steps_per_epoch), plan, views_of)


class FeatureLoader:
    """Load any rows in any order, as the test transform shows them."""

    def __init__(
        self,
        index: ImageIndex,
        config: DataConfig,
        batch_size: int,
        device: torch.device,
        bad: BadImages,
    ) -> None:
        """Build the stream of batches without augmentation."""
        self.device = device
        self.batch_size = batch_size
        self._index = index
        self._config = config
        spec = GraphSpec(
            config, index.store.kind, False, batch_size, torch.get_num_threads(), device
        )
        self._stream = BatchStream(index, spec, bad)

    def batches(
        self, rows: Rows, places: Sequence[tuple[float, float]] = (CENTRE,)
    ) -> Iterator[Batch]:
        """Yield each batch of `rows` once for every place that a crop is taken from."""
        size = self.batch_size

        def plan(step: int) -> LocalRows:
            at = step // len(places) * size
            return LocalRows(rows[at : at + size], rows[at : at + size])

        def views_of(step: int, rows_B: Rows) -> Views:
            sides = self._index.heights_N[rows_B], self._index.widths_N[rows_B]
            return plain_views(self._config, *sides, places[step % len(places)])

        return self._stream.batches(range(-(-len(rows) // size) * len(places)), plan, views_of)
