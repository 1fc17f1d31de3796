"""What the linear classifiers see of a network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from and_dist.config.schema import EncoderConfig
from and_dist.data.loader import Batch
from and_dist.evaluation.probe import (
    PADDING,
    FrozenLayers,
    Probes,
    losses_of,
    places_in,
    pool,
    whole_views,
)
from and_dist.models.encoders import build_encoder, stages


def test_alexnets_layers_are_pooled_as_published() -> None:
    encoder = build_encoder(EncoderConfig(name="alexnet"), seed=0).eval()
    images_BCHW = torch.randn(2, 3, 224, 224)
    ours = FrozenLayers(encoder, list(stages(encoder)))(images_BCHW)
    widths = {name: features.shape[1] for name, features in ours.items()}
    assert widths == {
        "conv1": 9600,
        "conv2": 9216,
        "conv3": 9600,
        "conv4": 9600,
        "conv5": 9216,
        "fc": 4096,
    }
    maps, features = images_BCHW, encoder.trunk[0]
    expected, at = {}, 0
    published = [(6, 6, 3), (4, 4, 0), (3, 3, 1), (3, 3, 1), (2, 2, 0)]
    with torch.no_grad():
        for module in features:
            maps = module(maps)
            if isinstance(module, torch.nn.ReLU):
                expected[f"conv{at + 1}"] = functional.avg_pool2d(maps, *published[at]).flatten(1)
                at += 1
    for name, by_hand in expected.items():
        torch.testing.assert_close(ours[name], by_hand)


@pytest.mark.parametrize(
    ("name", "side", "layers"),
    [("cifar_resnet18", 32, 5), ("cifar_alexnet", 32, 5), ("small", 28, 4), ("tiny", 32, 3)],
)
def test_every_layer_has_at_most_9600_features(name: str, side: int, layers: int) -> None:
    encoder = build_encoder(EncoderConfig(name=name), seed=0)
    found = FrozenLayers(encoder, list(stages(encoder)))(torch.randn(2, 3, side, side))
    assert list(found) == [*(f"conv{at}" for at in range(1, layers + 1)), "fc"]
    assert all(64 <= features.shape[1] <= 9600 for features in found.values())
    assert all(features.isfinite().all() for features in found.values())


def test_looking_changes_nothing() -> None:
    """Neither weights, nor running statistics, nor what a later forward pass keeps."""
    encoder = build_encoder(EncoderConfig(name="small"), seed=0).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features = FrozenLayers(encoder, ["conv2", "fc"])(torch.randn(4, 3, 32, 32))
    assert not any(f.requires_grad for f in features.values())
    assert all(torch.equal(before[n], t) for n, t in encoder.state_dict().items())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_pooling_is_a_mean_over_cells() -> None:
    maps = torch.arange(2 * 4096 * 4 * 4.0).view(2, 4096, 4, 4)
    assert torch.equal(pool(maps), maps.mean(dim=(2, 3)))


def test_gradients_of_layers_do_not_meet() -> None:
    """Two classifiers trained at once are those trained alone."""
    random = torch.Generator().manual_seed(0)
    features = {"a": torch.randn(6, 5, generator=random), "b": torch.randn(6, 3, generator=random)}
    labels_B = torch.tensor([0, 1, 2, 1, PADDING, 0])
    probes = Probes({"a": 5, "b": 3}, 3, seed=1)
    (losses_of(probes(features), labels_B).sum() / 5).backward()
    for name, inputs in features.items():
        alone = torch.nn.Linear(inputs.shape[1], 3)
        alone.load_state_dict(probes.linear[name].state_dict())
        real = labels_B != PADDING
        functional.cross_entropy(alone(inputs[real]), labels_B[real]).backward()
        torch.testing.assert_close(probes.linear[name].weight.grad, alone.weight.grad)


def test_a_layers_first_weights_are_its_own() -> None:
    """Whichever other layers are looked at with it."""
    together = Probes({"a": 5, "b": 3}, 3, seed=1).linear
    alone, other = (Probes({"b": 3}, 3, seed).linear for seed in (1, 2))
    assert torch.equal(together["b"].weight, alone["b"].weight)
    assert not torch.equal(other["b"].weight, alone["b"].weight)
    same_width = Probes({"a": 3, "b": 3}, 3, seed=1).linear
    assert not torch.equal(same_width["a"].weight, same_width["b"].weight)


def test_an_image_counts_if_every_crop_of_it_could_be_read() -> None:
    """A file that is damaged in a corner is whole in some crops."""
    pixels_BCHW = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 1, 2) + torch.tensor([0.0, 0.5])
    block = [Batch(pixels_BCHW, torch.tensor(rows)) for rows in ([4, 5, 6], [4, -1, 6])]
    rows_B, views = whole_views(block, is_ten_crop=True)
    assert rows_B.tolist() == [4, 6]
    assert [view[:, 0, 0].tolist() for view in views] == [[[0, 0.5], [2, 2.5]]] * 2 + [
        [[0.5, 0], [2.5, 2]]
    ] * 2


def test_views_of_an_image_are_averaged_as_probabilities() -> None:
    class Given:
        def __call__(self, view: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": view}

    probes = Probes({"a": 3}, 3, seed=0)
    with torch.no_grad():
        probes.linear["a"].weight.copy_(torch.eye(3))
        probes.linear["a"].bias.zero_()
    # One view is sure of class 1, three lean to 0: the mean logits say 1, the probabilities 0.
    views = [torch.tensor([[0.0, 9.0, 0.0]]), *[torch.tensor([[2.5, 0.0, 0.5]])] * 3]
    mean_C = torch.stack([view.softmax(dim=1) for view in views]).mean(dim=0)[0]
    order = mean_C.argsort(descending=True).tolist()
    assert order != torch.stack(views).mean(dim=0)[0].argsort(descending=True).tolist()
    places = [places_in(probes, Given(), views, torch.tensor([label])).item() for label in range(3)]
    assert [order[place] for place in places] == [0, 1, 2]
