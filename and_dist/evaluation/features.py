"""Compute the features of images seen through the test transform. M images of this rank."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.data.loader import FeatureLoader
from and_dist.distributed.world import World
from and_dist.method.memory_bank import all_shards, shard_range
from and_dist.utils.progress import Advance


@torch.no_grad()
def extract_features(
    network: nn.Module,
    loader: FeatureLoader,
    num_images: int,
    dim: int,
    world: World,
    advance: Advance,
) -> Tensor:
    """Return features [M, dim] of this rank's share of `num_images` rows, in their order.

    Images that cannot be read have features of zeros. The network is left in the mode it was in.
    """
    start, stop = shard_range(num_images, world.rank, world.size)
    (_, longest), *_ = all_shards(num_images, world.size)
    # `advance` may hold a collective, so every rank calls it as often as the one with most rows.
    num_batches = -(-longest // loader.batch_size)
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
    """Serve as a baseline that any network should beat: the features are the image's own pixels."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the pixels of each image as a unit vector [B, C * H * W]."""
        return functional.normalize(images_BCHW.flatten(1), dim=1)
