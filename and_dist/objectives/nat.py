"""Learn noise as targets (Bojanowski, Joulin, ICML 2017): features follow points of a sphere.

Row i starts with point i. Within every batch the points of its rows are dealt out anew, so that
they lie as near to the features as they can. Points are functions of (seed, number) and never
stored; who has which is a table of N numbers.

B local batch, G global batch, U rows of it without repetition, D feature, N all rows, X any rows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from and_dist.distributed.collectives import broadcast_from_coordinator
from and_dist.method.loss import GlobalBatch, gather_features_with_grad
from and_dist.objectives.base import Objective, ObjectiveContext
from and_dist.utils.counter_random import derive_key, draw_uniform


class Nat(Objective):
    """Minimises the distance of each feature from a point of the sphere that its row holds."""

    sums_over_images = False

    def __init__(self, context: ObjectiveContext) -> None:
        """Give row i the point i."""
        super().__init__(context)
        self._points_N = torch.arange(context.bank.num_rows, device=context.world.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the number of each row's point."""
        return {"points": self._points_N}

    def loss(self, features_BD: Tensor, batch: GlobalBatch) -> Tensor:
        """Return the mean squared distance of the features from the points that fit them best."""
        numbers_G = self._deal(batch)
        points_GD = self._draw(numbers_G)
        features_GD = gather_features_with_grad(features_BD, batch, self.context.world)
        is_real_G = batch.rows_G >= 0
        distance_G = (features_GD - points_GD).square().sum(dim=1)
        return distance_G.where(is_real_G, 0).sum() / is_real_G.sum().clamp(min=1)

    def _deal(self, batch: GlobalBatch) -> Tensor:
        """Return [G] the points of the batch's rows, dealt out anew; 0 for padding."""
        world, rows_G = self.context.world, batch.rows_G
        numbers_G = self._points_N[rows_G.clamp(min=0)]
        first_U = _first_of_each_row(rows_G)
        if world.is_coordinator:
            held_U = numbers_G[first_U]
            numbers_G[first_U] = held_U[assign(batch.features_GD[first_U], self._draw(held_U))]
        broadcast_from_coordinator(world, numbers_G)
        self._points_N[rows_G[first_U]] = numbers_G[first_U]
        return self._points_N[rows_G.clamp(min=0)].where(rows_G >= 0, 0)

    def _draw(self, numbers_X: Tensor) -> Tensor:
        """Return the points [X, D] of some numbers."""
        config = self.context.config
        points_XD = draw_points(numbers_X.cpu().numpy(), config.encoder.feature_dim, config.seed)
        return points_XD.to(numbers_X.device)


def assign(features_UD: Tensor, points_UD: Tensor) -> Tensor:
    """Return [U] the point of each feature, all different, of the largest sum of cosines."""
    # The assignment refuses NaN; the trainer finds a NaN in the features by the loss.
    cosine_UU = (features_UD.float() @ points_UD.T).nan_to_num()
    _, taken_U = linear_sum_assignment(cosine_UU.cpu().numpy(), maximize=True)
    return torch.from_numpy(taken_U).to(features_UD.device)


def draw_points(numbers_X: NDArray[np.int64], dim: int, seed: int) -> Tensor:
    """Return points [X, dim] of the unit sphere, uniform.

    They are normal numbers by Box and Muller, scaled to norm 1.
    """
    uniform_X = draw_uniform(derive_key(seed, "noise as targets"), numbers_X, 2 * dim)
    radius_XD = np.sqrt(-2 * np.log1p(-uniform_X[:, :dim]))
    normal_XD = radius_XD * np.cos(2 * np.pi * uniform_X[:, dim:])
    return functional.normalize(torch.from_numpy(normal_XD), dim=1).float()


def _first_of_each_row(rows_G: Tensor) -> Tensor:
    """Return [U] the positions of the batch's rows, without repetition and padding."""
    rows_U, first_U = np.unique(rows_G.cpu().numpy(), return_index=True)
    return torch.from_numpy(first_U[rows_U >= 0]).to(rows_G.device)
