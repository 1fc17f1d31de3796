"""Pool the outputs of frozen layers and classify them linearly.

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
from and_dist.models.stages import as_maps
from and_dist.utils.counter_random import derive_key

PADDING = -100
"""The label of images that count in no loss."""
MOST_FEATURES = 9600
"""The largest number of pooled features of a layer: the side of the grid is chosen to keep it."""
PUBLISHED_POOLING = {
    (96, 55): (6, 6, 3),
    (256, 27): (4, 4, 0),
    (384, 13): (3, 3, 1),
    (256, 13): (2, 2, 0),
}
"""(channels, side) of AlexNet's layers at 224 pixels -> (kernel, stride, padding)."""


def pool(maps: Tensor) -> Tensor:
    """Return feature maps [B, channels, height, width] as pooled features [B, F].

    Vectors [B, F] are returned unchanged. Tokens are pooled as the map of their places. AlexNet's
    layers at 224 pixels are pooled as published.
    """
    maps = as_maps(maps)
    if maps.dim() == 2:
        return maps
    channels, side = maps.shape[1], min(maps.shape[2:])
    if (channels, side) in PUBLISHED_POOLING and maps.shape[2] == maps.shape[3]:
        kernel, stride, padding = PUBLISHED_POOLING[channels, side]
        return functional.avg_pool2d(maps, kernel, stride, padding).flatten(1)
    cells = max(1, min(side, int((MOST_FEATURES / channels) ** 0.5)))
    return functional.adaptive_avg_pool2d(maps, cells).flatten(1)


class FrozenLayers:
    """Compute pooled features of chosen layers of an encoder, without gradients."""

    def __init__(self, encoder: Encoder, layers: Sequence[str]) -> None:
        """Choose layers by their names in `encoders.stages`."""
        self.encoder = encoder
        self.names = list(layers)
        self._modules = {name: stages(encoder)[name] for name in layers}

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return features [B, F] by layer; put the encoder into evaluation mode."""
        self.encoder.eval()
        with self._listening() as heard:
            self.encoder(images_BCHW)
        return {name: heard[name] for name in self._modules}

    @contextmanager
    def _listening(self) -> Iterator[dict[str, Tensor]]:
        """Collect the layers' pooled outputs while the block runs.

        Each output is pooled at once, so that no whole feature map is kept.
        """
        heard: dict[str, Tensor] = {}

        def build_hook(name: str) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                heard[name] = pool(output.float())

            return hook

        handles = [m.register_forward_hook(build_hook(name)) for name, m in self._modules.items()]
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()


class Probes(nn.Module):
    """Hold one linear classifier for each layer, each trained as it would be alone.

    The losses are added up and share no parameters, and the initial weights of a classifier are a
    function of the seed and the layer's name.
    """

    def __init__(self, widths: dict[str, int], num_classes: int, seed: int) -> None:
        """Draw the weights for features of the given widths by layer."""
        super().__init__()
        self.linear = nn.ModuleDict()
        for name, width in widths.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(derive_key(seed, "probe", name)))
                self.linear[name] = nn.Linear(width, num_classes)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return logits [L, B, C] of features [B, F] by layer."""
        return torch.stack([linear(features[name]) for name, linear in self.linear.items()])


def losses_of(logits_LBC: Tensor, labels_B: Tensor) -> Tensor:
    """Return [L] sums of cross-entropy over this rank's images; labels of PADDING do not count."""
    sums = [
        functional.cross_entropy(logits_BC, labels_B, reduction="sum", ignore_index=PADDING)
        for logits_BC in logits_LBC
    ]
    return torch.stack(sums)


def whole_views(block: Sequence[Batch], is_ten_crop: bool) -> tuple[Tensor, list[Tensor]]:
    """Return (rows [B], views) of the images of which every crop could be read.

    One batch of the block holds one crop of all images. A damaged file may give some crops and fail
    for others. With `is_ten_crop` the mirrored crops are added to the views.
    """
    is_real_B = torch.stack([batch.rows_B >= 0 for batch in block]).all(dim=0)
    views = [batch.images_BCHW[is_real_B] for batch in block]
    mirrored = [view.flip(-1) for view in views] if is_ten_crop else []
    return block[0].rows_B[is_real_B], views + mirrored


def places_in(
    probes: Probes, layers: FrozenLayers, views: Sequence[Tensor], labels_B: Tensor
) -> Tensor:
    """Return [L, B] the places of the true class by the mean probability over an image's views."""
    probability_LBC = torch.stack([probes(layers(view)).softmax(dim=2) for view in views]).mean(0)
    return torch.stack([rank_of_true_class(of_layer, labels_B) for of_layer in probability_LBC])
