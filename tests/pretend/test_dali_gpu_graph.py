"""Build and serialise DALI's graph of a GPU run where there is no GPU.

DALI compares arguments with the operators' schemas while a graph is made, and its registry says
which operators exist for a GPU. Only Pipeline.build() asks for a driver.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from nvidia.dali import backend_impl
from nvidia.dali.pipeline import Pipeline

from and_dist.config.schema import DataConfig
from and_dist.data import pipeline
from and_dist.data.pipeline import GraphSpec
from and_dist.data.stores import Kind

FOR_GPU = ("Resize", "CropMirrorNormalize")
FOR_MEANS = "reductions__Mean"
MIXED = "decoders__ImageSlice"


def serialise_graph(kind: Kind, is_training: bool) -> bytes:
    """Return the graph of a GPU run; it is told of no device, and not built."""
    config = DataConfig(image_size=224, flip=True)
    spec = GraphSpec(config, kind, is_training, 256, 8, torch.device("cuda", 0))
    open_pipeline = Pipeline.__init__

    def open_without_device(self: Pipeline, **settings: Any) -> None:
        assert settings["device_id"] == 0
        open_pipeline(self, **{**settings, "device_id": None})

    def feed_nothing() -> tuple[()]:
        return ()

    with (
        patch.object(Pipeline, "__init__", open_without_device),
        patch.object(Pipeline, "build", lambda _: None),
    ):
        made: bytes = pipeline._build(spec, feed_nothing).serialize()
    return made


@pytest.mark.parametrize("kind", ["encoded", "pixels"])
@pytest.mark.parametrize("is_training", [True, False])
def test_the_graph_of_a_gpu_is_whole(kind: Kind, is_training: bool) -> None:
    graph = serialise_graph(kind, is_training)
    for operator in FOR_GPU:
        assert operator.encode() in graph
    assert (FOR_MEANS.encode() in graph) == is_training
    assert (MIXED.encode() in graph) == (kind == "encoded")
    assert (b"mixed" in graph) == (kind == "encoded")
    assert (b"jpeg_fancy_upsampling" in graph) == (kind == "encoded")


def test_dali_has_the_operators_for_a_gpu() -> None:
    assert MIXED in backend_impl.RegisteredMixedOps()
    assert {*FOR_GPU, FOR_MEANS} <= set(backend_impl.RegisteredGPUOps())
