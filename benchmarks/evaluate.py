"""Measure the time and memory of evaluation: kNN, linear classifiers and features.

    python -m benchmarks.evaluate [--smoke] [--json FILE]

Weighted kNN over the bank is compared with one matrix of all similarities, its top-k and one-hot
votes; a pass of the linear classifiers over the images, with a pass for every layer; features of
the test images, with torchvision in a DataLoader. Equal results are asserted first. The floors are
operations over the machine's own rate of matrix products plus images over its rate of decoding,
since both take the same cores.

L layers, F features of a layer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from and_dist.config.optim_schema import LinearConfig
from and_dist.config.schema import DataConfig, EncoderConfig, EvaluationConfig
from and_dist.data.datasets import index_folder
from and_dist.data.index import ImageIndex
from and_dist.data.loader import FeatureLoader, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.world import World, open_world
from and_dist.evaluation.accuracy import rank_of_true_class
from and_dist.evaluation.features import extract_features
from and_dist.evaluation.knn import Voters, knn_places
from and_dist.evaluation.probe import FrozenLayers, Probes, losses_of, pool
from and_dist.models.encoders import Encoder, build_encoder, stages
from and_dist.models.optim import build_optimiser
from and_dist.utils.progress import silently
from benchmarks.common.features import draw_classes
from benchmarks.common.harness import Benchmark, parse_arguments
from benchmarks.common.images import write_photos
from benchmarks.common.peers import TorchvisionImages, open_loader, test_transform

DIM, NEIGHBOURS, TEMPERATURE = 128, 200, 0.07
SETTINGS = EvaluationConfig(knn=NEIGHBOURS, knn_temperature=TEMPERATURE)
SIZES = ((50_000, 10_000, 10), (1_281_167, 1_000, 1000))
"""Rows, queries and classes: those of CIFAR10, and ImageNet's rows with a part of its test
images."""
SMOKE_SIZES = ((10_000, 500, 10), (50_000, 100, 1000))
ENCODER, CLASSES, BATCH = "alexnet", 1000, 64
PUBLISHED_BATCH = 100
COMPARED = 100
"""The number of queries whose votes are compared with those in float64."""


class Data(NamedTuple):
    """Hold the features and labels of rows and queries."""

    features_ND: Tensor
    labels_N: Tensor
    queries_QD: Tensor
    labels_Q: Tensor


def draw(rows: int, queries: int, classes: int) -> Data:
    """Return random rows and queries around the same classes."""
    generator = torch.Generator().manual_seed(1)
    return Data(
        *draw_classes(rows, DIM, classes, generator),
        *draw_classes(queries, DIM, classes, generator),
    )


def ours(data: Data, world: World) -> Tensor:
    """Return the rank of each query's class among its votes, [Q], by our kNN."""
    return knn_places(
        Voters(data.features_ND, 0, data.labels_N), data.queries_QD, data.labels_Q, world, SETTINGS
    )


def dense(data: Data) -> Tensor:
    """Return the same by the published code's evaluation, in its batches.

    It computes all similarities, their top-k, and a one-hot vector for each vote.
    """
    num_classes, places = int(data.labels_N.max()) + 1, []
    for queries_QD, labels_Q in zip(
        data.queries_QD.split(PUBLISHED_BATCH), data.labels_Q.split(PUBLISHED_BATCH), strict=True
    ):
        similarity_QK, rows_QK = (queries_QD @ data.features_ND.T).topk(NEIGHBOURS, dim=1)
        votes_QKC = functional.one_hot(data.labels_N[rows_QK], num_classes)
        weights_QK1 = (similarity_QK / TEMPERATURE).exp()[:, :, None]
        votes_QC = (votes_QKC * weights_QK1).sum(dim=1)
        has_vote_Q = votes_QC.gather(1, labels_Q[:, None])[:, 0] > 0
        places.append(rank_of_true_class(votes_QC, labels_Q).where(has_vote_Q, num_classes - 1))
    return torch.cat(places)


def measure_knn(benchmark: Benchmark, sizes: Sequence[tuple[int, int, int]], repeats: int) -> None:
    """Assert equal results, then measure both forms of kNN at each size."""
    with open_world("cpu", os.cpu_count()) as world:
        for rows, queries, classes in sizes:
            data, at = draw(rows, queries, classes), f"{rows / 1000:,.0f}k rows"
            few = data._replace(
                queries_QD=data.queries_QD[:COMPARED], labels_Q=data.labels_Q[:COMPARED]
            )
            wide = few._replace(
                features_ND=few.features_ND.double(), queries_QD=few.queries_QD.double()
            )
            places_Q = ours(few, world)
            assert torch.equal(places_Q, dense(wide))
            del wide
            benchmark.facts[f"kNN right, {at}"] = f"{(places_Q == 0).double().mean():.0%}"
            cases = {
                f"kNN, {at}": partial(ours, data, world),
                f"dense kNN, {at}": partial(dense, data),
            }
            benchmark.measure(
                cases, repeats, dict.fromkeys(cases, queries), "queries", measure_memory=True
            )
            benchmark.ratio(f"dense_knn_{at.split('k')[0]}k", f"dense kNN, {at}", f"kNN, {at}")
            gflop = 2e-9 * rows * queries * DIM
            floor = gflop / benchmark.rates["matrix_fp32_gflops"]
            name = f"knn_{at.split('k')[0]}k"
            benchmark.floor(name, f"kNN, {at}", floor, f"{gflop:,.0f} GFLOP of one product")


class Enough(Exception):
    """Stop a forward pass after the layer that was asked for."""


def one_layer(encoder: Encoder, name: str, images_BCHW: Tensor) -> Tensor:
    """Return the pooled features of one layer, [B, F]; later layers are not computed."""
    heard: list[Tensor] = []

    def listen(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        heard.append(pool(output.float()))
        raise Enough

    handle = stages(encoder)[name].register_forward_hook(listen)
    try:
        with torch.no_grad():
            encoder(images_BCHW)
    except Enough:
        return heard[0]
    finally:
        handle.remove()
    raise AssertionError


class ProbeTraining:
    """Train a classifier on every layer in both ways, from the same initial weights."""

    def __init__(self, encoder: Encoder, classes: int, images: Callable[[], Iterator[Tensor]]):
        """Build the classifiers and optimisers of both ways."""
        self.encoder, self.layers, self.images = encoder.eval(), list(stages(encoder)), images
        self.frozen = FrozenLayers(encoder, self.layers)
        widths = {n: f.shape[1] for n, f in self.frozen(next(images())).items()}
        self.joint, self.apart = (Probes(widths, classes, 0) for _ in range(2))
        self.joint_optimiser = build_optimiser([self.joint], LinearConfig())
        self.optimisers = {
            name: build_optimiser([self.apart.linear[name]], LinearConfig()) for name in self.layers
        }
        self.labels_B = torch.arange(10**6) % classes

    def one_pass(self) -> Tensor:
        """Train all layers on each batch, as the trainer does; return the last losses, [L]."""
        for images_BCHW in self.images():
            labels_B = self.labels_B[: len(images_BCHW)]
            sums_L = losses_of(self.joint(self.frozen(images_BCHW)), labels_B)
            loss_L = sums_L / len(images_BCHW)
            loss_L.sum().backward()
            self.joint_optimiser.step()
            self.joint_optimiser.zero_grad()
        return loss_L.detach()

    def pass_a_layer(self) -> Tensor:
        """Train one layer at a time, each over all images; return the last losses, [L]."""
        losses = []
        for name, optimiser in self.optimisers.items():
            for images_BCHW in self.images():
                features_BF = one_layer(self.encoder, name, images_BCHW)
                logits_BC = self.apart.linear[name](features_BF)
                loss = functional.cross_entropy(logits_BC, self.labels_B[: len(images_BCHW)])
                loss.backward()
                optimiser.step()
                optimiser.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)


def gflop_of(case: Callable[[], object]) -> float:
    """Return the operations of a case's convolutions and matrix products, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        case()
    return 1e-9 * counter.get_total_flops()


def measure_probes(
    benchmark: Benchmark, index: ImageIndex, encoder: Encoder, data: DataConfig, repeats: int
) -> None:
    """Assert equal losses, then measure both ways to train the classifiers."""
    with open_world("cpu", os.cpu_count()) as world:
        order = Order(len(index), BATCH, 0)
        loader = TrainingLoader(index, data, order, world, BadImages(index, "stop"))

        def images() -> Iterator[Tensor]:
            for batch in loader.batches(0):
                yield batch.images_BCHW

        probing = ProbeTraining(encoder, CLASSES, images)
        torch.testing.assert_close(probing.one_pass(), probing.pass_a_layer())
        cases = {
            "probes, one pass": probing.one_pass,
            "probes, a pass a layer": probing.pass_a_layer,
        }
        benchmark.measure(
            cases, repeats, dict.fromkeys(cases, len(index)), "images", measure_memory=True
        )
        benchmark.ratio("probes", "probes, a pass a layer", "probes, one pass")
        benchmark.facts["probed layers"] = ", ".join(probing.layers)
        gflop = gflop_of(probing.one_pass)
        add_image_floor(benchmark, "probes", "probes, one pass", gflop, len(index))


def add_image_floor(benchmark: Benchmark, name: str, ours: str, gflop: float, images: int) -> None:
    """Add the ratio to the time that multiplying and decoding alone take."""
    rates = benchmark.rates
    multiply = gflop / rates["matrix_fp32_gflops"]
    decode = images / rates["decode_images_s"]
    why = f"{multiply:.3g} s to multiply ({gflop:,.0f} GFLOP) and {decode:.3g} s to decode"
    benchmark.floor(name, ours, multiply + decode, why)


def measure_features(
    benchmark: Benchmark, photos: Path, encoder: Encoder, data: DataConfig, repeats: int
) -> None:
    """Assert that features agree, then measure ours and those by torchvision."""
    with open_world("cpu", os.cpu_count()) as world:
        index = index_folder(photos).index
        loader = FeatureLoader(index, data, BATCH, torch.device("cpu"), BadImages(index, "stop"))
        images = TorchvisionImages(sorted(photos.iterdir()), test_transform(data), True)
        theirs = open_loader(images, BATCH, os.cpu_count() or 1, shuffle=False)

        def our_features() -> Tensor:
            return extract_features(encoder, loader, len(index), DIM, world, silently)

        @torch.no_grad()
        def their_features() -> Tensor:
            return torch.cat([encoder(images_BCHW) for images_BCHW, _ in theirs])

        encoder.eval()
        cosine_N = (our_features() * their_features()).sum(dim=1)
        assert cosine_N.min() > 0.99, cosine_N.min()
        benchmark.facts["least cosine of features with torchvision's"] = f"{cosine_N.min():.4f}"
        cases = {"features": our_features, "features by torchvision": their_features}
        benchmark.measure(cases, repeats, dict.fromkeys(cases, len(index)), "images")
        benchmark.ratio("features", "features by torchvision", "features")
        side = data.image_size
        with torch.no_grad():
            gflop = len(index) * gflop_of(lambda: encoder(torch.zeros(1, 3, side, side)))
        add_image_floor(benchmark, "features", "features", gflop, len(index))


def main() -> None:
    """Run the benchmark."""
    given = parse_arguments(__doc__ or "")
    benchmark = Benchmark("evaluate")
    sizes, count = (SMOKE_SIZES, 16) if given.smoke else (SIZES, 256)
    data = DataConfig(image_size=224, test_resize=256, flip=True, jitter=0, hue=0, grayscale=0)
    encoder = build_encoder(EncoderConfig(name=ENCODER), 0)
    measure_knn(benchmark, sizes, given.repeats)
    with tempfile.TemporaryDirectory() as base:
        photos = Path(base, "photos")
        write_photos(photos, count)
        benchmark.facts["encoder"] = f"{ENCODER} at {data.image_size} px"
        measure_probes(benchmark, index_folder(photos).index, encoder, data, given.repeats)
        measure_features(benchmark, photos, encoder, data, given.repeats)
    benchmark.finish(given.json)


if __name__ == "__main__":
    main()
