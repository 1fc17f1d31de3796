"""Project features to two dimensions: by principal components, and by UMAP if it is installed.

Q points, D feature, X principal directions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from and_dist.report.umap_points import begin_umap, forget_process, is_installed


def begin_projections(
    features_QD: Tensor, note: Callable[[str], None]
) -> Callable[[], dict[str, Tensor]]:
    """Start UMAP; return a function that waits for it and returns points [Q, 2] by method.

    UMAP comes first, because it shows more of the neighbourhoods than PCA does.

    If UMAP is installed and fails, `note` is told why and the result lacks it.
    """
    by_umap = None
    if is_installed() and len(features_QD) > 3:
        by_umap = begin_umap(features_QD.numpy())

    def finish() -> dict[str, Tensor]:
        found = {}
        if by_umap is not None:
            try:
                found["UMAP"] = torch.from_numpy(by_umap.result()).double()
            except Exception as error:  # a page is useful without UMAP
                note(f"no UMAP: {type(error).__name__}: {error}")
                forget_process()
        return found | {"PCA": principal_components(features_QD)}

    return finish


def principal_components(features_QD: Tensor) -> Tensor:
    """Return points [Q, 2] along the two directions of most variance; missing ones are zeros."""
    centred_QD = features_QD.double() - features_QD.double().mean(dim=0)
    _, _, directions_XD = torch.linalg.svd(centred_QD, full_matrices=False)
    directions_2D = directions_XD[:2]
    # The sign of a singular vector is arbitrary. Making its largest entry positive makes the map
    # the same each time.
    largest_21 = directions_2D.gather(1, directions_2D.abs().argmax(dim=1, keepdim=True))
    points_QX = centred_QD @ (directions_2D * largest_21.sign()).T
    missing = 2 - points_QX.shape[1]
    return torch.cat([points_QX, points_QX.new_zeros(len(points_QX), missing)], dim=1)
