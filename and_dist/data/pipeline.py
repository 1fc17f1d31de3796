"""The one DALI graph: read, decode and crop, resize, colour, mirror, normalise.

Every random choice comes in as a number (augment.Views); DALI's own random operators are not used.
The only module that knows DALI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from and_dist.config import DataConfig
from and_dist.data.augment import Views

QUEUE_DEPTH = 3


@dataclass(frozen=True)
class GraphSpec:
    """What differs between the graphs of one run."""

    data: DataConfig
    in_memory: bool
    is_training: bool
    batch_size: int
    threads: int


class Request(NamedTuple):
    """One batch to be made: pixels or paths, and what to cut from each."""

    images: Sequence[NDArray[np.uint8] | Path]
    views: Views


class ImagePipeline:
    """Requests in, normalised images [B, 3, side, side] out, QUEUE_DEPTH of them prepared ahead."""

    def __init__(self, spec: GraphSpec) -> None:
        self._requests: Iterator[Request] = iter(())
        self._is_training = spec.is_training
        self._pipeline = _build(spec, self._next_feeds)

    def stream(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """The images of each request in turn; requests are read ahead."""
        self._requests = iter(requests)
        try:
            yield from self._outputs()
        finally:
            self._requests = iter(())
            for _ in self._outputs():  # what was still in the queue
                pass
            self._pipeline.reset()

    def _outputs(self) -> Iterator[Tensor]:
        while True:
            try:
                (images,) = self._pipeline.run()
            except StopIteration:
                return
            yield torch.from_dlpack(images.as_tensor()).clone()

    def _next_feeds(self) -> tuple[Any, ...]:
        """Called by DALI whenever its queue has room; StopIteration ends the stream."""
        request = next(self._requests)
        views = request.views
        feeds: tuple[Any, ...] = (
            [_as_array(image) for image in request.images],
            views.start_B2,
            views.shape_B2,
            views.roi_start_B2,
            views.roi_stop_B2,
        )
        if self._is_training:
            feeds += (views.direct_B33, views.through_mean_B33, views.flip_B)
        return feeds


def _as_array(image: NDArray[np.uint8] | Path) -> NDArray[np.uint8]:
    if isinstance(image, Path):
        return np.frombuffer(str(image).encode("utf-8", "surrogateescape"), dtype=np.uint8)
    return image


def _build(spec: GraphSpec, next_feeds: Callable[[], tuple[Any, ...]]) -> Pipeline:
    pipeline = Pipeline(
        batch_size=spec.batch_size,
        num_threads=spec.threads,
        device_id=None,
        prefetch_queue_depth=QUEUE_DEPTH,
    )
    num_inputs = 8 if spec.is_training else 5
    with pipeline:
        inputs = fn.external_source(
            source=next_feeds,
            num_outputs=num_inputs,
            batch=True,
            layout=["HWC" if spec.in_memory else ""] + [""] * (num_inputs - 1),
        )
        image, start, shape, roi_start, roi_stop, *training_inputs = inputs
        pixels = fn.resize(
            _read_box(image, start, shape, spec.in_memory),
            size=[spec.data.image_size, spec.data.image_size],
            roi_start=roi_start,
            roi_end=roi_stop,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        flip = 0
        if spec.is_training:
            direct, through_mean, flip = training_inputs
            pixels = _colour(pixels, direct, through_mean)
        pipeline.set_outputs(_normalise(pixels, flip, spec.data))
    pipeline.build()
    return pipeline


def _read_box(image: Any, start: Any, shape: Any, in_memory: bool) -> Any:
    if in_memory:
        return fn.slice(image, start=start, shape=shape, axes=[0, 1])
    encoded = fn.io.file.read(image)
    return fn.decoders.image_slice(
        encoded, start=start, shape=shape, axes=[0, 1], output_type=types.RGB
    )


def _colour(pixels: Any, direct: Any, through_mean: Any) -> Any:
    """direct @ colour + through_mean @ mean colour, rounded and cut to 0..255."""
    mean = fn.reductions.mean(pixels, axes=[0, 1], keep_dims=True)
    offset = fn.reshape(fn.coord_transform(mean, M=through_mean), shape=[3])
    mapped = fn.coord_transform(pixels, M=direct, T=offset, dtype=types.UINT8)
    return fn.reinterpret(mapped, layout="HWC")


def _normalise(pixels: Any, flip: Any, data: DataConfig) -> Any:
    return fn.crop_mirror_normalize(
        pixels,
        mean=[255 * value for value in data.mean],
        std=[255 * value for value in data.std],
        mirror=flip,
        dtype=types.FLOAT,
        output_layout="CHW",
    )
