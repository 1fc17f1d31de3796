"""Linear classifiers over ranks: a known linear problem, a frozen random network, going on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from and_dist.checkpoint.reader import OpenedCheckpoint
from and_dist.config.load import load_config
from and_dist.config.optim_schema import LinearConfig
from and_dist.config.schema import Config, EncoderConfig
from and_dist.data.datasets import load_train_and_test
from and_dist.data.index import LabelledImages, index_pixels
from and_dist.data.stores import MemoryStore
from and_dist.distributed.watchdog import SIGNAL, Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import gather_ranks_of_true_class, rank_of_true_class
from and_dist.evaluation.probe import FrozenLayers, Probes
from and_dist.evaluation.probe_training import ProbeTraining, _digest, data_of_classifiers
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.runs.console import Display
from benchmarks.common.rank_pool import RankError, RankPool
from tests.suites import all_pairs

SIDE, CLASSES = 8, 4


def settings(*overrides: str) -> Config:
    return load_config(
        [],
        [
            "data.image_size=8",
            "data.crop_area=[1.0,1.0]",
            "data.test_resize=null",
            "data.mean=[0.5,0.5,0.5]",
            "data.std=[0.1,0.1,0.1]",
            "evaluation.linear.epochs=10",
            "evaluation.linear.batch_size=32",
            "evaluation.linear.milestones=[7]",
            *overrides,
        ],
    )


def draw_linear_problem(count: int, seed: int, side: int = SIDE) -> LabelledImages:
    """Noise, and of four directions in the space of pixels the one that is most present."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(0).normal(size=(CLASSES, side, side, 3))
    labels_N = random.integers(0, CLASSES, count)
    images = random.normal(0, 0.1, (count, side, side, 3)) + 0.02 * directions[labels_N]
    pixels = np.clip(np.rint(255 * (0.5 + images)), 0, 255).astype(np.uint8)
    return LabelledImages(index_pixels(pixels, "linear"), labels_N, tuple("abcd"))


def raw_pixels() -> Encoder:
    return Encoder(nn.Sequential(nn.Flatten()), 3 * SIDE * SIDE, EncoderConfig(feature_dim=4))


class Asked(Watchdog):
    """Asked to stop at some step of the training."""

    steps_left = -1

    def request(self) -> int:
        self.steps_left -= 1
        return SIGNAL + signal.SIGTERM if self.steps_left < 0 else super().request()


def probe(
    world: World,
    config: Config,
    folder: Path,
    encoder: Encoder,
    layers: list[str],
    data: tuple[LabelledImages, LabelledImages],
    at_step: int | None = None,
    weights: str = "of a checkpoint",
) -> tuple[float, list[list[float]], dict[str, Tensor]] | None:
    """(top-1 of the last layer, losses, weights); None where it was told to stop."""
    train, test = data
    watchdog = Watchdog()
    if at_step is not None:
        watchdog = Asked()
        watchdog.steps_left = at_step
    display = Display(is_shown=False)
    checkpoint, state = folder / "checkpoint", {"files": weights, "bad_images": {}}
    trained = OpenedCheckpoint(folder, config, checkpoint, state)
    trained.evaluation.mkdir(parents=True, exist_ok=True)
    probing = ProbeTraining(trained, FrozenLayers(encoder, layers), train, world, display, watchdog)
    try:
        probing.train()
        places_LM = probing.places(test, is_ten_crop=False)
    except Stopped:
        return None
    places_X, _ = gather_ranks_of_true_class(places_LM[-1], torch.zeros_like(places_LM[-1]), world)
    top1 = float((places_X == 0).mean())
    return top1, probing.losses, {n: t.detach() for n, t in probing.probes.state_dict().items()}


def as_features(images: LabelledImages) -> Tensor:
    return as_normalised(images, SIDE).flatten(1)


def as_normalised(images: LabelledImages, side: int) -> Tensor:
    """[N, 3, side, side], as the loader should give them."""
    store = images.index.store
    assert isinstance(store, MemoryStore)
    pixels = torch.from_numpy(store.block.reshape(len(images.index), side, side, 3).copy())
    return (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.1


def solve(train: LabelledImages, test: LabelledImages) -> float:
    """Top-1 of logistic regression brought to its end by Newton-like steps."""
    model = nn.Linear(3 * SIDE * SIDE, CLASSES)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200)
    inputs, labels = as_features(train), torch.tensor(train.labels_N)

    def loss() -> Tensor:
        optimiser.zero_grad()
        decay = sum((p**2).sum() for p in model.parameters())
        value = functional.cross_entropy(model(inputs), labels) + 5e-5 * decay
        value.backward()
        return value

    optimiser.step(loss)
    right = model(as_features(test)).argmax(dim=1) == torch.tensor(test.labels_N)
    return right.double().mean().item()


@pytest.mark.parametrize("size", [1, 3])
def test_a_known_linear_problem_is_solved(ranks: RankPool, tmp_path: Path, size: int) -> None:
    data = (draw_linear_problem(1000, 1), draw_linear_problem(500, 2))
    best = solve(*data)
    found = ranks.run(size, probe, settings(), tmp_path, raw_pixels(), ["fc"], data)
    top1, losses, _ = found[0]
    assert best > 0.85
    assert top1 > best - 0.03
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert all(other[0] == top1 for other in found)


@pytest.mark.parametrize("crops", ["as_training", "published"])
def test_ranks_train_as_one(ranks: RankPool, tmp_path: Path, crops: str) -> None:
    data = (draw_linear_problem(301, 1), draw_linear_problem(100, 2))
    short = ("evaluation.linear.epochs=3", "evaluation.linear.milestones=[2]")
    config = settings(*short, f"evaluation.linear.crops={crops}")
    given = (raw_pixels(), ["fc"], data)
    (_, expected, weights), *_ = ranks.run(1, probe, config, tmp_path / "1", *given)
    for size in (2, 3):
        (_, losses, ours), *_ = ranks.run(size, probe, config, tmp_path / str(size), *given)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_frozen_random_network_beats_chance_and_stays_as_it_is(
    ranks: RankPool, tmp_path: Path
) -> None:
    """1,000 images of 32 pixels, of which it keeps what is linear well enough."""
    config = settings("encoder.name=tiny", "data.image_size=32")
    encoder = build_encoder(config.encoder, 0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    data = (draw_linear_problem(1000, 1, 32), draw_linear_problem(500, 2, 32))
    layers = ["conv1", "conv3"]
    (top1, losses, _), *_ = ranks.run(2, probe, config, tmp_path, encoder, layers, data)
    assert top1 > 0.25 + 6 * (0.25 * 0.75 / 500) ** 0.5
    assert losses[-1][1] < losses[0][1] < 2 * np.log(CLASSES)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())


@pytest.fixture(scope="module")
def undisturbed(
    ranks: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], list[Any]]:
    """What so many ranks return of a short study that nothing disturbed; each trained once."""

    @cache
    def of(size: int) -> list[Any]:
        config, given = a_short_study()
        return ranks.run(size, probe, config, tmp_path_factory.mktemp("undisturbed"), *given)

    return of


@pytest.mark.parametrize(("size", "at_step"), all_pairs([1, 2, 3], [7, 29, 30, 31, 92]))
def test_stopped_it_goes_on_to_the_bit(
    ranks: RankPool,
    undisturbed: Callable[[int], list[Any]],
    tmp_path: Path,
    size: int,
    at_step: int,
) -> None:
    """31 steps an epoch: within one, about the end of one, and at the very end."""
    config, given = a_short_study()
    stopped = ranks.run(size, probe, config, tmp_path, *given, at_step)
    assert stopped == [None] * size
    again, whole = ranks.run(size, probe, config, tmp_path, *given), undisturbed(size)
    assert again[0][:2] == whole[0][:2]
    assert all(torch.equal(whole[0][2][name], t) for name, t in again[0][2].items())


def a_short_study(*overrides: str) -> tuple[Config, tuple[Encoder, list[str], Any]]:
    """Three epochs of 31 steps, on layers of unlike width."""
    config = settings(
        "evaluation.linear.epochs=3",
        "evaluation.linear.milestones=[2]",
        "evaluation.linear.batch_size=10",
        "encoder.name=tiny",
        "data.image_size=32",
        *overrides,
    )
    data = (draw_linear_problem(301, 1, 32), draw_linear_problem(50, 2, 32))
    return config, (build_encoder(config.encoder, 0), ["conv1", "conv2", "fc"], data)


def test_stopped_among_published_crops_it_goes_on_to_the_bit(
    ranks: RankPool, tmp_path: Path
) -> None:
    config, given = a_short_study("evaluation.linear.crops=published")
    whole = ranks.run(2, probe, config, tmp_path / "whole", *given)
    assert ranks.run(2, probe, config, tmp_path / "stopped", *given, 46) == [None] * 2
    again = ranks.run(2, probe, config, tmp_path / "stopped", *given)
    assert again[0][:2] == whole[0][:2]
    assert all(torch.equal(whole[0][2][name], t) for name, t in again[0][2].items())


def test_it_goes_on_at_another_number_of_ranks(
    ranks: RankPool, undisturbed: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    """Half an epoch's losses of three ranks lie in what two go on from."""
    config, given = a_short_study()
    (_, expected, weights), *_ = undisturbed(1)
    ranks.run(3, probe, config, tmp_path / "moved", *given, 46)
    (_, losses, ours), *_ = ranks.run(2, probe, config, tmp_path / "moved", *given)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)


def test_other_settings_and_layers_are_trained_beside(ranks: RankPool, tmp_path: Path) -> None:
    """What is finished stays finished, whatever is tried after it."""
    data = (draw_linear_problem(301, 1), draw_linear_problem(100, 2))
    short = ("evaluation.linear.epochs=2", "evaluation.linear.milestones=[1]")
    given = (raw_pixels(), ["fc"], data)
    first = ranks.run(1, probe, settings(*short), tmp_path, *given)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    other = settings(*short, "evaluation.linear.lr=0.001")
    second = ranks.run(1, probe, other, tmp_path, *given)
    assert second[0][1] != first[0][1]
    again = ranks.run(1, probe, settings(*short), tmp_path, *given)
    assert again[0][:2] == first[0][:2]
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("side", "test_resize", "resize"),
    [(224, None, 256), (32, None, 36), (28, None, 32), (224, 232, 232), (32, 40, 40)],
)
def test_published_crops_resize_in_proportion(
    side: int, test_resize: int | None, resize: int
) -> None:
    size = (f"data.image_size={side}", f"data.test_resize={test_resize or 'null'}")
    published = settings(*size, "evaluation.linear.crops=published", "data.jitter=0.4")
    assert data_of_classifiers(published).test_resize == resize
    as_training = settings(*size, "data.jitter=0.4")
    no_colours = {"jitter": 0.0, "hue": 0.0, "grayscale": 0.0}
    expected = as_training.data.model_copy(update=no_colours)
    assert data_of_classifiers(as_training) == expected


def test_classifiers_begun_before_there_were_published_crops_are_found() -> None:
    """By the folders of an earlier revision."""
    assert _digest(LinearConfig(), ["conv1", "fc"], "weights") == "919b7e6c"
    short = LinearConfig(epochs=3, milestones=(2,))
    assert _digest(short, ["fc"], "of a checkpoint") == "48d05f73"
    published = LinearConfig(crops="published")
    assert _digest(published, ["conv1", "fc"], "weights") != "919b7e6c"


def test_classifiers_of_other_weights_are_not_taken(ranks: RankPool, tmp_path: Path) -> None:
    """As of a run that was trained again, into a checkpoint of the same name."""
    config, (_, layers, data) = a_short_study()
    first, second = (build_encoder(config.encoder, seed) for seed in (0, 1))
    (_, old, _), *_ = ranks.run(1, probe, config, tmp_path, first, layers, data, None, "first")
    (_, new, _), *_ = ranks.run(1, probe, config, tmp_path, second, layers, data, None, "second")
    anew = ranks.run(1, probe, config, tmp_path / "anew", second, layers, data, None, "second")
    assert new == anew[0][1]
    assert new != old


@pytest.mark.parametrize("size", [1, 3])
def test_an_image_that_cannot_be_read_weighs_nothing(
    ranks: RankPool, tmp_path: Path, size: int
) -> None:
    """One step over 40 images, of which one is broken: the mean of the 39 others."""
    linear = draw_linear_problem(40, 1)
    pixels_NHWC = (0.1 * as_normalised(linear, SIDE) + 0.5).permute(0, 2, 3, 1) * 255
    assert linear.labels_N is not None
    for at, (pixels_HWC, label) in enumerate(zip(pixels_NHWC, linear.labels_N, strict=True)):
        file = tmp_path / "images" / "abcd"[label] / f"{at:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC.round().byte().numpy()).save(file)
    broken = tmp_path / "images" / "abcd"[linear.labels_N[7]] / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = settings(
        f"data.train={tmp_path / 'images'}",
        "data.bad_images=skip",
        "evaluation.linear.epochs=1",
        "evaluation.linear.milestones=[1]",
        "evaluation.linear.batch_size=40",
    )
    images, _ = load_train_and_test(config.data.model_copy(update={"test": None}))
    data = (images, draw_linear_problem(100, 2))
    (_, ((loss,),), weights), *_ = ranks.run(
        size, probe, config, tmp_path, raw_pixels(), ["fc"], data
    )
    expected = Probes({"fc": 3 * SIDE * SIDE}, CLASSES, config.seed).linear["fc"]
    kept = [at for at in range(40) if at != 7]
    by_hand = functional.cross_entropy(
        expected(as_features(linear)[kept]), torch.tensor(linear.labels_N)[kept]
    )
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)
    assert expected.weight.grad is not None
    step = config.evaluation.linear.lr * (expected.weight.grad + 1e-4 * expected.weight)
    torch.testing.assert_close(
        weights["linear.fc.weight"], (expected.weight - step).detach(), rtol=1e-4, atol=1e-6
    )
    (line,) = (tmp_path / "evaluation/checkpoint/bad_images.txt").read_text().splitlines()
    assert line.startswith(f"{broken}: ")


def test_a_classifier_that_diverges_says_so(ranks: RankPool, tmp_path: Path) -> None:
    data = (draw_linear_problem(301, 1), draw_linear_problem(100, 2))
    wild = settings("evaluation.linear.lr=1e30")
    with pytest.raises(RankError, match="on fc is not finite in epoch 1; a smaller"):
        ranks.run(2, probe, wild, tmp_path, raw_pixels(), ["fc"], data)


def test_a_damaged_probe_does_not_cost_the_run(ranks: RankPool, tmp_path: Path) -> None:
    data = (draw_linear_problem(301, 1), draw_linear_problem(100, 2))
    short = settings("evaluation.linear.epochs=2", "evaluation.linear.milestones=[1]")
    given = (raw_pixels(), ["fc"], data)
    ranks.run(1, probe, short, tmp_path, *given)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"spoilt")
    with pytest.raises(
        RankError, match=f"to start anew, delete {tmp_path}/evaluation/checkpoint/probe-"
    ):
        ranks.run(1, probe, short, tmp_path, *given)


def ten_crops_by_hand(world: World, config: Config, folder: Path) -> tuple[Tensor, Tensor]:
    """Places by Probing, and by torchvision's crops of the very pixels."""
    images = draw_linear_problem(24, 3, 16)
    trained = OpenedCheckpoint(
        folder, config, folder / "checkpoint", {"files": "", "bad_images": {}}
    )
    display = Display(is_shown=False)
    layers = FrozenLayers(raw_pixels(), ["fc"])
    probing = ProbeTraining(trained, layers, images, world, display, Watchdog())
    with torch.no_grad():
        probing.probes.linear["fc"].weight.normal_(generator=torch.Generator().manual_seed(1))
    ours = probing.places(images, is_ten_crop=True)[0]
    crops = tv.ten_crop(as_normalised(images, 16), [SIDE, SIDE])
    logits = [probing.probes({"fc": crop.flatten(1)})[0] for crop in crops]
    mean_MC = torch.stack([of_crop.softmax(dim=1) for of_crop in logits]).mean(dim=0)
    return ours, rank_of_true_class(mean_MC, torch.tensor(images.labels_N))


def test_ten_crops_are_torchvisions(ranks: RankPool, tmp_path: Path) -> None:
    config = settings("data.test_resize=16", "evaluation.linear.batch_size=10")
    ((ours, by_hand),) = ranks.run(1, ten_crops_by_hand, config, tmp_path)
    assert ours.tolist() == by_hand.tolist()
    assert len(set(ours.tolist())) > 1
