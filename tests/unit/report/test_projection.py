from __future__ import annotations

import multiprocessing

import torch
from sklearn.decomposition import PCA

from and_dist.report.projection import begin_projections, principal_components
from and_dist.report.umap_points import forget_process


def test_principal_components_are_those_of_another_library() -> None:
    features_QD = torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    features_QD[:, 2] *= 5
    features_QD[:, 4] *= 3
    points_Q2 = principal_components(features_QD)
    theirs = PCA(2).fit_transform(features_QD.double().numpy())
    for axis in (0, 1):
        same = torch.allclose(points_Q2[:, axis], torch.tensor(theirs[:, axis]), atol=1e-6)
        turned = torch.allclose(points_Q2[:, axis], -torch.tensor(theirs[:, axis]), atol=1e-6)
        assert same or turned


def test_a_single_image_has_a_place() -> None:
    assert principal_components(torch.ones(1, 7)).shape == (1, 2)


def test_umap_keeps_what_is_together_together() -> None:
    generator = torch.Generator().manual_seed(2)
    centres_2D = torch.eye(2, 16)
    groups = torch.arange(60) % 2
    features_QD = centres_2D[groups] + 0.05 * torch.randn(60, 16, generator=generator)
    notes: list[str] = []
    points_Q2 = begin_projections(features_QD, notes.append)()["UMAP"]
    assert notes == []
    centre_22 = torch.stack([points_Q2[groups == group].mean(dim=0) for group in (0, 1)])
    nearest_Q = torch.cdist(points_Q2, centre_22).argmin(dim=1)
    assert (nearest_Q == groups).float().mean() == 1


def test_a_umap_that_is_killed_leaves_the_rest() -> None:
    forget_process()
    before = set(multiprocessing.active_children())
    notes: list[str] = []
    finish = begin_projections(torch.randn(40, 5), notes.append)
    for process in set(multiprocessing.active_children()) - before:
        process.kill()
    assert list(finish()) == ["PCA"]
    assert notes[0].startswith("no UMAP: BrokenProcessPool")
