"""Linear classifiers on frozen layers: what they see, and what they are.

B local batch, L layers, C classes, F pooled features of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.data.loader import Batch
from and_dist.evaluation.accuracy import rank_of_true_class
from and_dist.models.encoders import Encoder, stages
from and_dist.utils.counter_random import derive_key

PADDING = -100
MOST_FEATURES = 9600
"""Of a pooled layer: the square of cells that gives no more."""
PUBLISHED_POOLING = {
    (96, 55): (6, 6, 3),
    (256, 27): (4, 4, 0),
    (384, 13): (3, 3, 1),
    (256, 13): (2, 2, 0),
}
"""Channels and side of AlexNet's layers at 224 pixels -> kernel, stride, padding."""


def pool(maps: Tensor) -> Tensor:
    """[B, F] of feature maps [B, channels, side, side], or of vectors as they are."""
    if maps.dim() == 2:
        return maps
    channels, side = maps.shape[1], min(maps.shape[2:])
    if (channels, side) in PUBLISHED_POOLING and maps.shape[2] == maps.shape[3]:
        kernel, stride, padding = PUBLISHED_POOLING[channels, side]
        return functional.avg_pool2d(maps, kernel, stride, padding).flatten(1)
    cells = max(1, min(side, int((MOST_FEATURES / channels) ** 0.5)))
    return functional.adaptive_avg_pool2d(maps, cells).flatten(1)


class FrozenLayers:
    """Images -> pooled features of the chosen layers, without a gradient."""

    def __init__(self, encoder: Encoder, layers: Sequence[str]) -> None:
        self._encoder = encoder
        self._modules = {name: stages(encoder)[name] for name in layers}

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        self._encoder.eval()
        with self._listening() as heard:
            self._encoder(images_BCHW)
        return {name: heard[name] for name in self._modules}

    @contextmanager
    def _listening(self) -> Iterator[dict[str, Tensor]]:
        """What comes out of the layers meanwhile, pooled at once."""
        heard: dict[str, Tensor] = {}

        def listener(name: str) -> Any:
            def listen(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                heard[name] = pool(output.float())

            return listen

        handles = [m.register_forward_hook(listener(name)) for name, m in self._modules.items()]
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()


class Probes(nn.Module):
    """A linear classifier a layer, each as it would be alone: their losses add up, their gradients
    do not meet, and their first weights follow from the seed and the layer's name."""

    def __init__(self, widths: dict[str, int], num_classes: int, seed: int) -> None:
        super().__init__()
        self.linear = nn.ModuleDict()
        for name, width in widths.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(derive_key(seed, "probe", name)))
                self.linear[name] = nn.Linear(width, num_classes)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """[L, B, C] logits."""
        return torch.stack([linear(features[name]) for name, linear in self.linear.items()])


def losses_of(logits_LBC: Tensor, labels_B: Tensor) -> Tensor:
    """[L] sums of each layer's cross-entropy over this rank's images; PADDING does not count."""
    sums = [
        functional.cross_entropy(logits_BC, labels_B, reduction="sum", ignore_index=PADDING)
        for logits_BC in logits_LBC
    ]
    return torch.stack(sums)


def whole_views(block: Sequence[Batch], is_ten_crop: bool) -> tuple[Tensor, list[Tensor]]:
    """([B], views): rows of which every crop could be read; a file may be damaged in a corner."""
    is_real_B = torch.stack([batch.rows_B >= 0 for batch in block]).all(dim=0)
    views = [batch.images_BCHW[is_real_B] for batch in block]
    mirrored = [view.flip(-1) for view in views] if is_ten_crop else []
    return block[0].rows_B[is_real_B], views + mirrored


def places_in(
    probes: Probes, layers: FrozenLayers, views: Sequence[Tensor], labels_B: Tensor
) -> Tensor:
    """[L, B] the place of the true class, by the mean probability over the views of an image."""
    probability_LBC = torch.stack([probes(layers(view)).softmax(dim=2) for view in views]).mean(0)
    return torch.stack([rank_of_true_class(of_layer, labels_B) for of_layer in probability_LBC])
