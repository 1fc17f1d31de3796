"""Build and run the one DALI graph: decode and crop, resize, mirror, normalise.

Torch changes the colours of its output, and with data.hue_model=hsv normalises it too.

Every random choice comes in as a number (augment.Views); DALI's own random operators are not used.
No other module imports DALI.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from and_dist.config.schema import DataConfig
from and_dist.data.augment import Views, plain_views
from and_dist.data.colour import ColourMaps
from and_dist.data.hsv_jitter import HsvJitter
from and_dist.data.order import LocalRows
from and_dist.data.stores import U8, Kind

QUEUE_DEPTH = 3
"""The number of batches that DALI prepares ahead."""
BLANKS: dict[Kind, U8] = {
    "encoded": np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8),
    "pixels": np.zeros((1, 1, 3), np.uint8),
}
"""An image of one pixel by the form of stored images."""


@dataclass(frozen=True)
class GraphSpec:
    """Hold everything in which the graphs of one run differ."""

    data: DataConfig
    kind: Kind
    is_training: bool
    batch_size: int
    threads: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    """The type of the images that come out."""

    @property
    def on_gpu(self) -> bool:
        """Return whether the graph runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def has_jitter_steps(self) -> bool:
        """Return whether images come out of DALI as they are, because hsv_jitter normalises."""
        return self.is_training and self.data.hue_model == "hsv"

    @property
    def decode_bytes(self) -> float:
        """Return the most bytes of pixels that may be decoded at once."""
        return self.data.decode_mb * 1e6


class PendingBatch(NamedTuple):
    """Name a batch to be made: its rows, the bytes or pixels of each image, and their views."""

    local: LocalRows
    fetched: Sequence[U8]
    views: Views
    decoded_bytes: int = 0
    """The memory of the pixels of its images."""
    is_last: bool = True
    """False if more batches of the same step follow."""
    is_blank: bool = False
    """True if it only fills DALI's queue, and nobody wants its images."""

    @property
    def file_bytes(self) -> int:
        """Return the memory of the files of its images."""
        return sum(image.nbytes for image in self.fetched)

    @property
    def num_bytes(self) -> int:
        """Return the memory that it takes while it is decoded."""
        return self.file_bytes + self.decoded_bytes


class DecodeError(RuntimeError):
    """Report that DALI failed on an image; the pipeline that raised it cannot be used again."""


class ImagePipeline:
    """Turn batches of bytes into normalised images [B, 3, side, side], QUEUE_DEPTH ahead."""

    def __init__(self, spec: GraphSpec) -> None:
        """Build the graph, which waits for its first batch."""
        self.spec = spec
        self.in_flight: deque[PendingBatch] = deque()
        """Batches that DALI has been given and that have not been yielded, oldest first."""
        self._fed: deque[tuple[Any, ...]] = deque()
        """Inputs that DALI may still read where they lie: those in flight, and the last."""
        self._batches: Iterator[PendingBatch] = iter(())
        self._waiting: PendingBatch | None = None
        """The next batch, which would be too much beside those in flight."""
        self._failure: Exception | None = None
        colours = HsvJitter if spec.has_jitter_steps else ColourMaps
        self._change_colours: Callable[..., Tensor] = colours(spec.data, spec.device).apply
        self._pipeline = _build(spec, self._next_feeds)

    def stream(self, batches: Iterable[PendingBatch]) -> Iterator[tuple[PendingBatch, Tensor]]:
        """Yield each batch with its images; batches are read ahead.

        On a CPU images are valid until the next are asked for. After a DecodeError, which leaves
        the batches that may have caused it in `in_flight`, or when the stream is left early, the
        next stream starts from a clean pipeline.
        """
        self._batches = iter(batches)
        self.in_flight.clear()
        try:
            for outputs in self._outputs():
                batch = self.in_flight.popleft()
                if batch.is_blank:
                    continue
                yield batch, self._finish(batch.views, outputs)
        finally:
            self._batches, self._waiting = iter(()), None
            self._clear()

    def _clear(self) -> None:
        """Drain DALI's queue and reset the pipeline; build a new one if that fails."""
        try:
            for _ in self._outputs():
                pass
            self._pipeline.reset()
            self._fed.clear()
        except (DecodeError, AssertionError):
            self._pipeline = _build(self.spec, self._next_feeds)

    def _outputs(self) -> Iterator[list[Tensor]]:
        """Yield the outputs of the graph, batch by batch, as tensors that share DALI's memory.

        Raise DecodeError if DALI fails, and the RuntimeError of the requests' iterator if that
        failed.
        """
        on_gpu = self.spec.on_gpu
        while True:
            try:
                # On torch's stream, DALI reuses its memory only after torch has read it.
                stream = torch.cuda.current_stream().cuda_stream if on_gpu else None
                outputs = self._pipeline.run(stream)
            except StopIteration:
                return
            except (RuntimeError, IndexError) as error:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure from None
                raise DecodeError(str(error)) from None
            yield [torch.from_dlpack(output.as_tensor()) for output in outputs]

    def _finish(self, views: Views, outputs: list[Tensor]) -> Tensor:
        """Change the colours for training, and return images of the spec's type and layout."""
        images_BCHW = self._change_colours(views, *outputs) if self.spec.is_training else outputs[0]
        # A GPU's convolutions are faster on channels-last images.
        layout = torch.channels_last if self.spec.on_gpu else torch.preserve_format
        return images_BCHW.to(dtype=self.spec.dtype, memory_format=layout)

    def _next_feeds(self) -> tuple[Any, ...]:
        """Return the inputs of the next batch. DALI calls this whenever its queue has room;
        StopIteration ends the stream."""
        try:
            batch = self._next_batch()
        except RuntimeError as error:  # not DALI's: whoever makes the batches gave up
            self._failure = error
            raise
        self.in_flight.append(batch)
        views = batch.views
        images = list(batch.fetched)
        numbers: list[np.ndarray[Any, Any]] = [views.roi_start_B2, views.roi_stop_B2, views.flip_B]
        if self.spec.kind == "pixels":
            return images, *numbers
        numbers += [views.start_B2, views.shape_B2]
        feeds = (images, *map(np.ascontiguousarray, numbers))
        self._fed.append(feeds)
        while len(self._fed) > len(self.in_flight) + 1:
            self._fed.popleft()
        return feeds

    def _next_batch(self) -> PendingBatch:
        """Return the next batch, or a blank one while those in flight leave it no memory.

        DALI decodes the batches of its queue side by side, and asks for one whenever it has room.
        """
        batch = next(self._batches) if self._waiting is None else self._waiting
        in_flight = sum(other.num_bytes for other in self.in_flight if not other.is_blank)
        fits = not in_flight or in_flight + batch.num_bytes <= self.spec.decode_bytes
        self._waiting = None if fits else batch
        return batch if fits else self._blank

    @cached_property
    def _blank(self) -> PendingBatch:
        """Return a batch of one image of one pixel."""
        nobody, side = np.full(1, -1), np.ones(1, np.int32)
        views = plain_views(self.spec.data, side, side)
        fetched = [BLANKS[self.spec.kind]]
        return PendingBatch(LocalRows(nobody, nobody), fetched, views, is_blank=True)


def explain_failures(spec: GraphSpec, batch: PendingBatch) -> dict[int, str]:
    """Return the rows of a batch that DALI cannot decode, each tried alone, and its reasons."""
    reasons = {}
    alone = GraphSpec(spec.data, spec.kind, False, 1, 1, spec.device)
    pipeline = ImagePipeline(alone)
    for at, row in enumerate(batch.local.images_B.tolist()):
        try:
            single = batch._replace(fetched=[batch.fetched[at]], views=batch.views.part(at))
            list(pipeline.stream([single]))
        except DecodeError as error:
            reasons[row] = explain(str(error))
    return reasons


def explain(message: str) -> str:
    """Return the reason in DALI's error message about one image, in plain words."""
    told = message.rpartition("encountered:")[2]
    if "Failed to decode" in told:
        return "its data is damaged or cut short"
    return " ".join(told.split())[:200]


def _build(spec: GraphSpec, next_feeds: Callable[[], tuple[Any, ...]]) -> Pipeline:
    """Build the DALI pipeline that reads its inputs from `next_feeds`."""
    pipeline = Pipeline(
        batch_size=spec.batch_size,
        num_threads=spec.threads,
        device_id=spec.device.index if spec.on_gpu else None,
        prefetch_queue_depth=QUEUE_DEPTH,
    )
    num_inputs = 4 if spec.kind == "pixels" else 6
    with pipeline:
        inputs = fn.external_source(
            source=next_feeds,
            num_outputs=num_inputs,
            batch=True,
            layout=["HWC" if spec.kind == "pixels" else ""] + [""] * (num_inputs - 1),
            # Encoded images are read where they lie: copying 256 of ImageNet's holds Python for 3
            # of 4.5 ms. Pixels are copied side by side, from where small images are read faster (by
            # a fifth at 32 pixels), for a GPU into pinned memory, from where it takes them.
            no_copy=spec.kind == "encoded",
        )
        image, roi_start, roi_stop, flip, *box = inputs
        pixels = fn.resize(
            _read(image, box, spec),
            size=[spec.data.image_size, spec.data.image_size],
            roi_start=roi_start,
            roi_end=roi_stop,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        pipeline.set_outputs(*_finish(pixels, flip, spec))
    pipeline.build()
    return pipeline


def _finish(pixels: Any, flip: Any, spec: GraphSpec) -> list[Any]:
    """Return the nodes of the outputs: images, and what the changes of their colours ask for."""
    if spec.has_jitter_steps:
        shape = {"dtype": types.UINT8, "output_layout": "CHW"}
        return [fn.crop_mirror_normalize(pixels, mirror=flip, **shape)]
    images = fn.crop_mirror_normalize(
        pixels,
        mean=[255 * value for value in spec.data.mean],
        std=[255 * value for value in spec.data.std],
        mirror=flip,
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    return [images, fn.reductions.mean(pixels, axes=[0, 1])] if spec.is_training else [images]


def _read(image: Any, box: Sequence[Any], spec: GraphSpec) -> Any:
    """Return the node that gives the box of each image.

    The store has already cut boxes from pixels; encoded images are cut while they are decoded.
    """
    if spec.kind == "pixels":
        return image.gpu() if spec.on_gpu else image
    start, shape = box
    return fn.decoders.image_slice(
        image,
        start=start,
        shape=shape,
        axes=[0, 1],
        output_type=types.RGB,
        device="mixed" if spec.on_gpu else "cpu",
        hw_decoder_load=spec.data.hardware_decoder,
        # Mixed decoding would otherwise double the chroma's pixels, which a CPU interpolates.
        jpeg_fancy_upsampling=True,
    )
