"""Loss, every parameter gradient after DDP, and the bank after the update, at any world size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from and_dist.distributed.world import World
from and_dist.method.loss import (
    gather_features_with_grad,
    gather_global_batch,
    neighbourhood_nll,
    sharded_nll,
)
from benchmarks.common.rank_pool import SIZES, RankPool
from tests import reference
from tests.ranks.scenes import Scene, build_scene, part_of, shard_of

UPDATE_RATE = 0.3


def build_network(dim: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(dim, 24), nn.Tanh(), nn.Linear(24, dim)).to(dtype)


def features_of(network: nn.Module, inputs_BD: Tensor) -> Tensor:
    return functional.normalize(network(inputs_BD), dim=1)


def one_step(
    world: World, scene: Scene, bank_dtype: torch.dtype, renormalise: bool
) -> tuple[float, list[Tensor], Tensor]:
    dim = scene.bank_ND.shape[1]
    network = build_network(dim, scene.inputs_GD.dtype)
    parallel = DistributedDataParallel(network, process_group=world.group)
    bank = shard_of(scene.bank_ND.to(bank_dtype), world, UPDATE_RATE, renormalise=renormalise)
    features_BD = features_of(parallel, part_of(scene.inputs_GD, world, 0.5))
    rows_B = part_of(scene.rows_G, world, -1)
    neighbours_BK = part_of(scene.neighbours_GK, world, 0)
    batch = gather_global_batch(features_BD, rows_B, neighbours_BK, world)
    loss = sharded_nll(features_BD, batch, bank, world, scene.temperature)
    loss.backward()
    bank.update(batch.rows_G, batch.features_GD)
    gradients = [parameter.grad for parameter in network.parameters()]
    return loss.item(), gradients, bank.features_SD


def expected_step(scene: Scene, renormalise: bool) -> tuple[float, list[Tensor], Tensor]:
    bank_ND, inputs_GD = scene.bank_ND.double(), scene.inputs_GD.double()
    network = build_network(bank_ND.shape[1], scene.inputs_GD.dtype).double()
    features_GD = features_of(network, inputs_GD)
    loss = reference.loss(
        features_GD, scene.rows_G, scene.neighbours_GK, bank_ND, scene.temperature
    )
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    bank = reference.updated_bank(
        bank_ND, scene.rows_G, features_GD.detach(), UPDATE_RATE, renormalise
    )
    return loss.item(), gradients, bank


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("num_rows", "batch", "num_neighbours", "temperature", "renormalise"),
    [
        (41, 12, 1, 0.1, True),
        (41, 13, 3, 0.05, False),
        (1003, 30, 3, 0.07, True),
        (1003, 31, 1, 1.0, True),
        (5, 7, 1, 0.1, True),  # at four ranks the last shard is empty
        (2, 1, 1, 0.1, True),
    ],
)
def test_step_equals_dense_in_float64(
    ranks: RankPool,
    size: int,
    num_rows: int,
    batch: int,
    num_neighbours: int,
    temperature: float,
    renormalise: bool,
) -> None:
    scene = build_scene(num_rows, batch, 16, num_neighbours, temperature)
    results = ranks.run(size, one_step, scene, torch.float64, renormalise)
    loss, gradients, bank_ND = expected_step(scene, renormalise)
    for rank_loss, rank_gradients, _ in results:
        assert rank_loss == pytest.approx(loss, rel=1e-10, abs=1e-10)
        for ours, theirs in zip(rank_gradients, gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ours_ND = torch.cat([shard for _, _, shard in results])
    torch.testing.assert_close(ours_ND, bank_ND, rtol=1e-10, atol=1e-10)


# Measured on these scenes: float32 2e-6, float16 6e-4, bfloat16 6e-3; the bounds leave a factor 4.
@pytest.mark.parametrize(
    ("bank_dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_step_in_lower_precision_stays_near_dense(
    ranks: RankPool, size: int, bank_dtype: torch.dtype, tolerance: float, temperature: float
) -> None:
    scene = build_scene(1003, 30, 128, 3, temperature, dtype=torch.float32)
    scene = scene._replace(bank_ND=scene.bank_ND.to(bank_dtype).float())
    results = ranks.run(size, one_step, scene, bank_dtype, True)
    loss, gradients, bank_ND = expected_step(scene, True)
    scale = max(gradient.abs().max().item() for gradient in gradients)
    for rank_loss, rank_gradients, _ in results:
        assert rank_loss == pytest.approx(loss, abs=tolerance * max(1, loss))
        for ours, theirs in zip(rank_gradients, gradients, strict=True):
            assert (ours - theirs).abs().max() < 4 * tolerance * scale
    ours_ND = torch.cat([shard for _, _, shard in results]).double()
    assert (ours_ND - bank_ND).abs().max() < tolerance


def loss_alone(world: World, scene: Scene) -> float:
    arguments = (part_of(scene.rows_G, world, -1), part_of(scene.neighbours_GK, world, -1))
    features_BD = functional.normalize(part_of(scene.inputs_GD, world, 1.0), dim=1)
    bank = shard_of(scene.bank_ND, world)
    return neighbourhood_nll(features_BD, *arguments, bank, world, scene.temperature).item()


def test_loss_is_the_same_number_on_every_rank(ranks: RankPool) -> None:
    scene = build_scene(41, 10)
    losses = [loss for size in SIZES for loss in ranks.run(size, loss_alone, scene)]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-12)


def test_padding_alone_costs_nothing(ranks: RankPool) -> None:
    scene = build_scene(41, 4)._replace(rows_G=torch.full((4,), -1))
    assert ranks.run(2, loss_alone, scene) == [0.0, 0.0]


def all_features(world: World, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """The features of all ranks, and the gradient of a loss that looks at all of them alike."""
    features_BD = part_of(scene.inputs_GD, world, 1.0).requires_grad_()
    arguments = (part_of(scene.rows_G, world, -1), part_of(scene.neighbours_GK, world, -1))
    batch = gather_global_batch(features_BD, *arguments, world)
    features_GD = gather_features_with_grad(features_BD, batch, world)
    features_GD.square().sum().backward()
    return features_BD.detach(), features_GD.detach(), features_BD.grad


@pytest.mark.parametrize("size", SIZES)
def test_gathered_features_let_gradients_through_to_this_ranks(ranks: RankPool, size: int) -> None:
    results = ranks.run(size, all_features, build_scene(41, 10))
    expected_GD = torch.cat([features_BD for features_BD, _, _ in results])
    for features_BD, features_GD, gradient_BD in results:
        assert torch.equal(features_GD, expected_GD)
        torch.testing.assert_close(gradient_BD, size * 2 * features_BD)


def request_of_all(world: World, scene: Scene, *requests: int) -> list[int]:
    arguments = (part_of(scene.rows_G, world, -1), part_of(scene.neighbours_GK, world, -1))
    features_BD = part_of(scene.inputs_GD, world, 1.0)
    return gather_global_batch(features_BD, *arguments, world, *requests).requests_G.tolist()


def test_requests_travel_with_the_batch(ranks: RankPool) -> None:
    scene = build_scene(41, 4)
    assert ranks.run(2, request_of_all, scene) == [[0] * 4] * 2
    assert ranks.run(2, request_of_all, scene, 2) == [[2] * 4] * 2


def scattered_bank(world: World, scene: Scene) -> tuple[float, Tensor]:
    """As `one_step`, for features of very different lengths from one another on each rank."""
    features_BD = part_of(scene.inputs_GD, world, 1.0).requires_grad_()
    arguments = (part_of(scene.rows_G, world, -1), part_of(scene.neighbours_GK, world, -1))
    bank = shard_of(scene.bank_ND, world)
    loss = neighbourhood_nll(features_BD, *arguments, bank, world, scene.temperature)
    (3 * loss).backward()
    return loss.item(), features_BD.grad / world.size


@pytest.mark.parametrize("size", SIZES)
def test_gradient_of_features_follows_the_chain_rule(ranks: RankPool, size: int) -> None:
    scene = build_scene(41, 12, num_neighbours=3)
    inputs_GD = scene.inputs_GD.clone().requires_grad_()
    loss = reference.loss(
        inputs_GD, scene.rows_G, scene.neighbours_GK, scene.bank_ND, scene.temperature
    )
    (3 * loss).backward()
    results = ranks.run(size, scattered_bank, scene)
    ours_GD = torch.cat([gradient for _, gradient in results])
    torch.testing.assert_close(ours_GD, inputs_GD.grad, rtol=1e-10, atol=1e-10)
