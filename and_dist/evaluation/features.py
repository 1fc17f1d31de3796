"""What a network makes of images seen through the test transform. M images of this rank."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.data.loader import FeatureLoader
from and_dist.utils.progress import Advance


@torch.no_grad()
def extract_features(
    network: nn.Module,
    loader: FeatureLoader,
    start: int,
    stop: int,
    dim: int,
    most_rows: int,
    advance: Advance,
) -> Tensor:
    """[M, dim] features of rows [start, stop), in their order; zeros for what cannot be read.

    All ranks advance as often as one with `most_rows`.
    """
    num_batches = -(-most_rows // loader.batch_size)
    num_done = 0
    was_training = network.training
    network.eval()
    features_MD = torch.zeros(stop - start, dim, device=loader.device)
    for batch in loader.batches(np.arange(start, stop)):
        is_real_B = batch.rows_B >= 0
        features_BD = network(batch.images_BCHW).float()
        features_MD[batch.rows_B[is_real_B] - start] = features_BD[is_real_B]
        advance(1 / num_batches)
        num_done += 1
    for _ in range(num_batches - num_done):
        advance(1 / num_batches)
    network.train(was_training)
    return features_MD


class RawPixels(nn.Module):
    """The baseline any network should beat: the image's own pixels, as a unit vector."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return functional.normalize(images_BCHW.flatten(1), dim=1)
