"""Cut a rank's share of a batch into parts that are computed one after the other.

Every image is compared with the bank as it was before the step, so the weighted sum of the parts'
losses is the loss of the whole batch, and so are the gradients. The bank is updated when all parts
are done.

B local batch, P parts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from and_dist.config.optim_schema import TrainingOptimConfig
from and_dist.data.loader import Batch
from and_dist.data.order import SMALLEST_LOCAL_BATCH
from and_dist.distributed.collectives import reduce_sum
from and_dist.distributed.world import World
from and_dist.method.loss import GlobalBatch


class BatchPart(NamedTuple):
    """Hold images and rows that are computed together."""

    images_BCHW: Tensor
    rows_B: Tensor
    share: Tensor | None
    """The part's share of the batch's real images over all ranks; None if it is the whole."""


def cut(batch: Batch, count: int, world: World) -> list[BatchPart]:
    """Return at most `count` parts of a batch, as many on all ranks, which call this together.

    A part has two images at least, so the last batch of an epoch may have fewer parts.
    """
    count = min(count, len(batch.rows_B) // SMALLEST_LOCAL_BATCH)
    if count <= 1:
        return [BatchPart(*batch, None)]
    images, rows = batch.images_BCHW.chunk(count), batch.rows_B.chunk(count)
    if len(rows[-1]) < SMALLEST_LOCAL_BATCH:
        images, rows = batch.images_BCHW.tensor_split(count), batch.rows_B.tensor_split(count)
    num_real_P = torch.stack([(rows_B >= 0).sum() for rows_B in rows])
    num_real_P = reduce_sum(world, num_real_P)
    shares_P = num_real_P / num_real_P.sum().clamp(min=1)
    return [BatchPart(*part) for part in zip(images, rows, shares_P.unbind(), strict=True)]


def join(batches: list[GlobalBatch]) -> GlobalBatch:
    """Return the queries of all parts as those of one batch, with the requests of the last part."""
    if len(batches) == 1:
        return batches[0]
    return GlobalBatch(
        torch.cat([batch.features_GD for batch in batches]),
        torch.cat([batch.rows_G for batch in batches]),
        torch.cat([batch.neighbours_GK for batch in batches]),
        batches[-1].requests_G,
    )


def check_parts(optim: TrainingOptimConfig, num_rows: int, num_ranks: int) -> None:
    """Raise ValueError if a rank has too few images of a batch for its parts."""
    local = -(-min(optim.batch_size, num_rows) // num_ranks)
    most = max(1, local // SMALLEST_LOCAL_BATCH)
    if optim.accumulate > most:
        raise ValueError(
            f"optim.accumulate = {optim.accumulate}: a rank has {local} images of a batch, and "
            f"each part takes at least {SMALLEST_LOCAL_BATCH} of them; take at most {most}"
        )
