"""Objectives equal their plainest form, loss and all gradients, at any world size."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from and_dist.config.load import load_config
from and_dist.config.schema import OBJECTIVES, Config
from and_dist.distributed.world import World
from and_dist.method.loss import gather_global_batch
from and_dist.method.memory_bank import MemoryBank
from and_dist.models.optim import build_optimiser
from and_dist.objectives.base import (
    Objective,
    ObjectiveContext,
    build_objective,
    learns_from_labels,
)
from and_dist.objectives.instance_nce import NEW_SHARE
from and_dist.objectives.nat import assign, draw_points
from and_dist.runs.console import Display
from and_dist.utils.counter_random import derive_key, draw_bits
from benchmarks.common.rank_pool import SIZES, RankPool
from tests import reference
from tests.ranks.runs import (
    assert_equal_to_the_bit,
    checkpoint_of,
    debug_config,
    losses_of,
    metrics_of,
    train,
    train_poisoned,
    train_until_asked,
)
from tests.ranks.scenes import Scene, build_scene, part_of, shard_of
from tests.ranks.test_loss import build_network, features_of
from tests.suites import all_pairs

Undisturbed = Callable[[str, int], Path]
DIM = 16
ROWS = 41
LABELS_N = np.arange(ROWS) * 7 % 5
COMPETITORS = [m for m, where in OBJECTIVES.items() if not where.startswith("anchor_")]
"""The methods that the paper compares with; whole runs of its own are in test_trainer.py."""


def settings(method: str, *overrides: str) -> Config:
    return load_config(
        [],
        [
            f"method={method}",
            f"encoder.feature_dim={DIM}",
            "instance_nce.negatives=9",
            "deepcluster.clusters=6",
            "deepcluster.iterations=4",
            *overrides,
        ],
    )


def objective_of(config: Config, bank: MemoryBank, world: World, features_SD: Tensor) -> Objective:
    display = Display(is_shown=False)
    labels_N = LABELS_N if learns_from_labels(config.method) else None
    objective = build_objective(
        ObjectiveContext(config, world, bank, labels_N, lambda: features_SD, display.phase)
    )
    objective.head.double()
    return objective


def steps_of(
    world: World, scene: Scene, config: Config, num_steps: int
) -> tuple[list[float], list[Tensor], dict[str, Tensor]]:
    """Return the losses of equal steps, the last gradients, and what the objective resumes from."""
    network = build_network(DIM, torch.float64)
    parallel = DistributedDataParallel(network, process_group=world.group)
    bank = shard_of(scene.bank_ND, world)
    objective = objective_of(config, bank, world, bank.features_SD.float())
    optimiser = build_optimiser([network, objective.head], config.optim)
    objective.begin_epoch(3, optimiser)
    objective.head.double()
    rows_B, neighbours_BK = (
        part_of(scene.rows_G, world, -1),
        part_of(scene.neighbours_GK, world, -1),
    )
    losses = []
    for _ in range(num_steps):
        optimiser.zero_grad()
        features_BD = features_of(parallel, part_of(scene.inputs_GD, world, 0.5))
        batch = gather_global_batch(features_BD, rows_B, neighbours_BK, world)
        loss = objective.loss(features_BD, batch)
        loss.backward()
        losses.append(loss.item())
    modules = [network, objective.head]
    gradients = [p.grad for module in modules for p in module.parameters()]
    return losses, gradients, {**objective.tensors(), **objective.head.state_dict()}


def negatives_of(rows_G: Tensor, step: int) -> Tensor:
    bits_GM = draw_bits(derive_key(0, "negatives", step), rows_G.clamp(min=0).numpy(), 9)
    return torch.from_numpy((bits_GM % np.uint64(ROWS)).astype(np.int64))


def expected_loss(
    method: str, features_GD: Tensor, scene: Scene, head: torch.nn.Linear, state: dict[str, Tensor]
) -> Tensor:
    """Return the loss of the first step."""
    if method == "and":
        return reference.loss(
            features_GD, scene.rows_G, scene.neighbours_GK, scene.bank_ND, scene.temperature
        )
    if method == "supervised":
        return reference.weighted_cross_entropy(
            features_GD, scene.rows_G, torch.from_numpy(LABELS_N), torch.ones(5), head, 0.1
        )
    if method == "deepcluster":
        sizes_C = state["clusters"].bincount(minlength=6).double()
        weights_C = ROWS / sizes_C / (sizes_C > 0).sum()
        return reference.weighted_cross_entropy(
            features_GD, scene.rows_G, state["clusters"], weights_C, head, 0.1
        )
    if method == "nat":
        points_GD = draw_points(state["points"][scene.rows_G.clamp(min=0)].numpy(), DIM, 0)
        distance_G = ((features_GD - points_GD) ** 2).sum(dim=1)
        return distance_G[scene.rows_G >= 0].mean()
    assert method == "instance_nce", f"{method} has no direct form here yet"
    arguments = (scene.rows_G, negatives_of(scene.rows_G, 0), scene.bank_ND, 0.1)
    z = reference.nce_normaliser(features_GD, *arguments)
    return reference.nce_loss(features_GD, *arguments, z)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", ["and", *COMPETITORS])
@pytest.mark.parametrize("batch", [12, 13])
def test_a_step_equals_its_direct_form(ranks: RankPool, method: str, size: int, batch: int) -> None:
    scene = build_scene(ROWS, batch, DIM)
    scene.rows_G[3] = -1
    config = settings(method)
    results = ranks.run(size, steps_of, scene, config, 1)
    state = results[0][2]
    network = build_network(DIM, torch.float64)
    num_classes = len(state["bias"]) if "bias" in state else 1
    head = torch.nn.Linear(DIM, num_classes).double()
    if "bias" in state:
        head.load_state_dict({name: state[name] for name in ("weight", "bias")})
    features_GD = features_of(network, scene.inputs_GD)
    loss = expected_loss(method, features_GD, scene, head, state)
    loss.backward()
    modules = [network, head] if "bias" in state else [network]
    expected = [p.grad for module in modules for p in module.parameters()]
    for (rank_loss,), gradients, rank_state in results:
        assert rank_loss == pytest.approx(loss.item(), rel=1e-7)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        for name, tensor in rank_state.items():
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("size", [1, 3])
def test_nce_keeps_its_z_or_follows_it(ranks: RankPool, size: int) -> None:
    scene = build_scene(ROWS, 12, DIM)
    features_GD = features_of(build_network(DIM, torch.float64), scene.inputs_GD).detach()
    z = [
        reference.nce_normaliser(
            features_GD, scene.rows_G, negatives_of(scene.rows_G, step), scene.bank_ND, 0.1
        )
        for step in range(3)
    ]
    constant = ranks.run(size, steps_of, scene, settings("instance_nce"), 3)
    assert constant[-1][2]["log_z"].exp().item() == pytest.approx(z[0])
    follows = settings("instance_nce", "instance_nce.z=estimated")
    estimated = ranks.run(size, steps_of, scene, follows, 3)
    average = z[0]
    for newest in z:
        average += NEW_SHARE * (newest - average)
    assert estimated[-1][2]["log_z"].exp().item() == pytest.approx(average)
    arguments = (scene.rows_G, negatives_of(scene.rows_G, 2), scene.bank_ND, 0.1)
    last = reference.nce_loss(features_GD, *arguments, z[0])
    assert constant[0][0][2] == pytest.approx(last.item())
    assert estimated[0][0][2] != pytest.approx(last.item(), rel=1e-6)


def test_negatives_are_all_rows_alike() -> None:
    """4,096 draws of each of 200 queries: every row within five deviations of its share."""
    bits_GM = draw_bits(derive_key(0, "negatives", 5), np.arange(200), 4096)
    counts_N = np.bincount((bits_GM % np.uint64(ROWS)).astype(np.int64).ravel(), minlength=ROWS)
    share = 200 * 4096 / ROWS
    assert np.abs(counts_N - share).max() < 5 * share**0.5


def test_nat_deals_points_out_as_well_as_can_be() -> None:
    random = torch.Generator().manual_seed(0)
    features_UD = functional.normalize(torch.randn(6, 4, generator=random), dim=1)
    points_UD = draw_points(np.arange(6), 4, 0)
    taken_U = assign(features_UD, points_UD)
    assert tuple(taken_U.tolist()) == reference.best_assignment(features_UD @ points_UD.T)
    assert tuple(taken_U.tolist()) != tuple(range(6))


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_of_nat_is_dealt_the_points_its_rows_hold(ranks: RankPool, size: int) -> None:
    """Of all permutations the best, by the features of all ranks; then again, of what is held."""
    scene = build_scene(ROWS, 7, DIM)
    scene.rows_G[3] = -1
    real = [at for at in range(6) if at != 3]  # the last is the first once more
    rows_U = scene.rows_G[real]
    features_GD = features_of(build_network(DIM, torch.float64), scene.inputs_GD).detach()
    held_N = torch.arange(ROWS)
    points_UD = draw_points(held_N[rows_U].numpy(), DIM, 0)
    best = reference.best_assignment(features_GD[real] @ points_UD.double().T)
    held_N[rows_U] = held_N[rows_U][list(best)]
    assert held_N.tolist() != list(range(ROWS))
    for steps in (1, 2):  # the same features a second time: nothing is dealt anew
        for _, _, state in ranks.run(size, steps_of, scene, settings("nat"), steps):
            assert state["points"].tolist() == held_N.tolist()


def test_nats_points_are_uniform_on_the_sphere() -> None:
    points_XD = draw_points(np.arange(20_000), 8, 3)
    assert (points_XD.norm(dim=1) - 1).abs().max() < 1e-6
    assert points_XD.mean(dim=0).abs().max() < 5 * (1 / 8 / 20_000) ** 0.5
    second_DD = points_XD.T @ points_XD / len(points_XD)
    assert (second_DD - torch.eye(8) / 8).abs().max() < 0.01
    assert torch.equal(points_XD[100:102], draw_points(np.array([100, 101]), 8, 3))


def test_nats_points_stay_a_permutation(ranks: RankPool) -> None:
    scene = build_scene(ROWS, 13, DIM)
    (_, _, state), *_ = ranks.run(3, steps_of, scene, settings("nat"), 4)
    assert sorted(state["points"].tolist()) == list(range(ROWS))
    assert state["points"].tolist() != list(range(ROWS))


def test_a_new_epoch_has_a_new_classifier_without_momentum(ranks: RankPool) -> None:
    assert ranks.run(1, renew_twice) == [True]


def renew_twice(world: World) -> bool:
    scene = build_scene(ROWS, 12, DIM)
    config, bank = settings("deepcluster"), shard_of(scene.bank_ND, world)
    objective = objective_of(config, bank, world, bank.features_SD.float())
    optimiser = build_optimiser([objective.head], config.optim)
    objective.begin_epoch(0, optimiser)
    first = [p.detach().clone() for p in objective.head.parameters()]
    for parameter in objective.head.parameters():
        optimiser.state[parameter]["momentum_buffer"].fill_(1.0)
    objective.begin_epoch(1, optimiser)
    second = list(objective.head.parameters())
    momentum = [optimiser.state[p]["momentum_buffer"].abs().sum().item() for p in second]
    is_new = all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return is_new and momentum == [0.0, 0.0]


def run_config(root: Path, method: str, *overrides: str) -> Config:
    return debug_config(
        root,
        f"method={method}",
        "instance_nce.negatives=64",
        "deepcluster.clusters=12",
        "curriculum.rounds=1",
        "evaluation.baselines=false",
        *overrides,
    )


@pytest.fixture(scope="module")
def undisturbed(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a method's run on so many ranks that nothing disturbed; each trained once."""

    @cache
    def of(method: str, size: int) -> Path:
        config = run_config(tmp_path_factory.mktemp("undisturbed"), method)
        ranks.run(size, train, config)
        return config.folder

    return of


@pytest.mark.parametrize("method", COMPETITORS)
def test_a_run_is_the_same_at_other_world_sizes(undisturbed: Undisturbed, method: str) -> None:
    losses = [losses_of(undisturbed(method, size)) for size in (1, 3)]
    assert len(losses[0]) == 30
    assert ((losses[0] - losses[1]) / losses[0]).abs().max() < 2e-3


@pytest.mark.parametrize(("method", "step"), all_pairs(COMPETITORS, [7, 15]))
def test_a_stopped_run_goes_on_to_the_bit(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, method: str, step: int
) -> None:
    """Stopped within an epoch, and at the end of one."""
    broken = run_config(tmp_path, method)
    ranks.run(2, train_until_asked, broken, step)
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, undisturbed(method, 2))


def test_random_is_one_evaluation(ranks: RankPool, tmp_path: Path) -> None:
    config = run_config(tmp_path, "random", "name=random", "evaluation.baselines=true")
    ranks.run(2, train, config)
    events = metrics_of(config.folder)
    assert [record["event"] for record in events] == ["baselines", "round"]
    assert events[1]["knn"] == events[0]["random"] == pytest.approx(events[1]["knn_bank"], abs=0.02)


@pytest.mark.parametrize("phase", ["clusters of all images", "features of the training images"])
def test_a_run_stopped_while_it_clusters_goes_on_to_the_bit(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, phase: str
) -> None:
    broken = run_config(tmp_path, "deepcluster")
    ranks.run(2, train_until_asked, broken, -1, phase)
    ranks.run(2, train, broken)
    assert_equal_to_the_bit(broken.folder, undisturbed("deepcluster", 2))


@pytest.mark.parametrize("method", COMPETITORS)
def test_an_objective_rolls_back_with_the_run(ranks: RankPool, tmp_path: Path, method: str) -> None:
    """Twice alike: what it learned of the bad batch is gone, its table, head and Z with it."""
    configs = [
        run_config(tmp_path, method, f"name=again{n}", "run.non_finite=roll_back") for n in range(2)
    ]
    for config in configs:
        ranks.run(2, train_poisoned, config, "loss")
    assert_equal_to_the_bit(configs[0].folder, configs[1].folder)
    (found,) = [e for e in metrics_of(configs[0].folder) if e["event"] == "rolled_back"]
    assert (found["round"], found["epoch"], found["step"]) == (1, 1, 2)
    tensors = checkpoint_of(configs[0].folder)
    assert all(tensor.isfinite().all() for name, tensor in tensors.items() if name != "entropy")


@pytest.mark.parametrize("method", COMPETITORS)
def test_an_objective_goes_on_at_another_number_of_ranks(
    ranks: RankPool, undisturbed: Undisturbed, tmp_path: Path, method: str
) -> None:
    moved = run_config(tmp_path, method)
    ranks.run(3, train_until_asked, moved, 12)
    ranks.run(1, train, moved)
    ours, theirs = losses_of(moved.folder), losses_of(undisturbed(method, 1))
    assert ((ours - theirs) / theirs).abs().max() < 2e-3
