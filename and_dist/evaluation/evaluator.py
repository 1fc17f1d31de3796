"""Compute every figure of a run that needs labels, which training itself never sees.

N all rows, S rows of this shard, M test images of this rank, D feature.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from and_dist.config.schema import MOST_PIXEL_BYTES, Config
from and_dist.data.index import LabelledImages
from and_dist.data.loader import FeatureLoader
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import gather_objects
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import UNREADABLE, top1_accuracy
from and_dist.evaluation.bank_figures import (
    Moments,
    fit_probe,
    moments_of,
    neighbour_entropy,
    signs_of_collapse,
)
from and_dist.evaluation.features import RawPixels, extract_features
from and_dist.evaluation.knn import Voters, knn_places
from and_dist.evaluation.neighbourhood_picture import write_neighbourhoods
from and_dist.evaluation.neighbourhood_stats import consistency, describe_neighbourhoods
from and_dist.method.memory_bank import MemoryBank, shard_range
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.utils.progress import Phase

IMAGES_PER_BATCH = 256


class Evaluator:
    """Hold the labels and test images of a run and evaluate encoders with them.

    Figures are None if labels or test images are missing.
    """

    def __init__(
        self,
        config: Config,
        train: LabelledImages,
        test: LabelledImages | None,
        world: World,
        bad: BadImages,
        phase: Phase,
    ) -> None:
        """Open loaders for both sets; `bad` collects the training images that cannot be read."""
        self._config = config
        self._train = train
        self._phase = phase
        self._world = world
        self._labels_N = None if train.labels_N is None else torch.tensor(train.labels_N)
        self._train_loader = self._loader(train, bad)
        self._test_loader: FeatureLoader | None = None
        self._num_rows, self._num_classes = len(train.index), len(train.class_names)
        self._bad, self._bad_test = bad, None
        if test is not None and test.labels_N is not None and self._labels_N is not None:
            self._num_test = len(test.index)
            start, stop = shard_range(self._num_test, world.rank, world.size)
            self._test_labels_M = torch.tensor(test.labels_N[start:stop])
            self._bad_test = BadImages(test.index, config.data.bad_images, left_out=test.left_out)
            self._test_loader = self._loader(test, self._bad_test)

    def train_features(self, network: nn.Module, dim: int) -> Tensor:
        """Return features [S, dim] of this rank's training images; zeros for unreadable ones."""
        return self._features(
            network, self._train_loader, self._num_rows, dim, "features of the training images"
        )

    def knn(self, network: nn.Module) -> float | None:
        """Return kNN accuracy with newly computed features of the training images."""
        dim = self._config.encoder.feature_dim
        if self._test_loader is None:
            return None
        return self._knn(self.train_features(network, dim), self._test_features(network, dim))

    def judge_bank(self, network: nn.Module, bank: MemoryBank) -> dict[str, float | None]:
        """Return kNN and linear probe with the bank's rows, and their early signs of collapse."""
        if self._test_loader is None:
            return {"knn_bank": None, "probe_bank": None, **self._signs(bank)}
        test_MD = self._test_features(network, bank.features_SD.shape[1])
        knn = self._knn(bank.features_SD, test_MD)
        return {"knn_bank": knn, **self._probe_and_signs(bank, test_MD)}

    def judge_both(self, network: nn.Module, bank: MemoryBank) -> dict[str, float | None]:
        """Return judge_bank() with the kNN accuracy of newly computed features, `knn`.

        One pass over the test images serves all.
        """
        if self._test_loader is None:
            return {"knn": None, **self.judge_bank(network, bank)}
        by_bank_M, anew_M, test_MD = self.places_of_both(network, bank)
        return {
            "knn": top1_accuracy(anew_M, self._world),
            "knn_bank": top1_accuracy(by_bank_M, self._world),
            **self._probe_and_signs(bank, test_MD),
        }

    def places_of_both(self, network: nn.Module, bank: MemoryBank) -> tuple[Tensor, Tensor, Tensor]:
        """Return two [M], the places of the true class by the bank and by newly computed features,
        and the features [M, D] of the test images.

        The place of a test image that cannot be read is UNREADABLE.
        """
        dim = bank.features_SD.shape[1]
        # This pass comes first: it finds the unreadable images, whose rows must not vote.
        train_SD = self.train_features(network, dim)
        test_MD = self._test_features(network, dim)
        anew_M = self._places(train_SD, test_MD)
        del train_SD  # frees its memory before the bank's rows are converted to float32
        return self._places(bank.features_SD, test_MD), anew_M, test_MD

    def share_bad_images(self, folder: Path) -> None:
        """Write lists of the images that any rank could not read into `folder`.

        Raise RuntimeError on all ranks if too many images cannot be read.
        """
        self._bad.share(self._world, folder / "bad_images.txt")
        if self._bad_test is not None:
            self._bad_test.share(self._world, folder / "bad_test_images.txt")

    @property
    def vote(self) -> str:
        """Return K and tau of every kNN figure as text."""
        return self._config.evaluation.votes_among(self._num_rows)

    def baselines(self, untrained: nn.Module) -> dict[str, float | None]:
        """Return kNN accuracies of raw pixels and of the untrained network, and the seconds taken.

        Raw pixels are left out (None) if a rank's share takes more than MOST_PIXEL_BYTES.
        """
        started = time.monotonic()
        pixels = self.knn_of_raw_pixels() if self.pixel_bytes <= MOST_PIXEL_BYTES else None
        random = self.knn(untrained)
        seconds = time.monotonic() - started
        return {"raw_pixels": pixels, "random": random, "seconds": seconds}

    @property
    def pixel_bytes(self) -> int:
        """Return the size in bytes of a rank's training images as float32 pixels."""
        rows = -(-self._num_rows // self._world.size)
        return 4 * rows * 3 * self._config.data.image_size**2

    def knn_of_raw_pixels(self) -> float | None:
        """Return kNN accuracy with the images' own pixels as features."""
        pixels, dim = RawPixels(), 3 * self._config.data.image_size**2
        if self._test_loader is None:
            return None
        return self._knn(self.train_features(pixels, dim), self._test_features(pixels, dim))

    def consistency(self, neighbourhoods: Neighbourhoods) -> float | None:
        """Return the share of (anchor, neighbour) pairs of one class."""
        if self._labels_N is None:
            return None
        return consistency(neighbourhoods, self._labels_N)

    def describe(self, neighbourhoods: Neighbourhoods, previous_A: Tensor) -> dict[str, Any]:
        """Return statistics of a discovery; `previous_A` are the anchors of the round before."""
        return describe_neighbourhoods(neighbourhoods, previous_A, self._labels_N)

    def draw_neighbourhoods(self, found: Neighbourhoods, round_index: int) -> None:
        """Write RUN/neighbourhoods/round-NN.png, on one rank alone."""
        write_neighbourhoods(found, self._train, self._config.folder, round_index)

    def _loader(self, images: LabelledImages, bad: BadImages) -> FeatureLoader:
        """Return a loader of test views that collects unreadable images in `bad`."""
        device = self._world.device
        return FeatureLoader(images.index, self._config.data, IMAGES_PER_BATCH, device, bad)

    def _test_features(self, network: nn.Module, dim: int) -> Tensor:
        """Return features [M, dim] of this rank's test images."""
        assert self._test_loader is not None
        return self._features(
            network, self._test_loader, self._num_test, dim, "features of the test images"
        )

    def _features(
        self, network: nn.Module, loader: FeatureLoader, num_images: int, dim: int, what: str
    ) -> Tensor:
        """Return features [rows, dim] of this rank's share of the images."""
        with self._phase(what) as advance:
            return extract_features(network, loader, num_images, dim, self._world, advance)

    def _places(self, features_SD: Tensor, queries_MD: Tensor) -> Tensor:
        """Return [M] the place of each true class, UNREADABLE for a feature of zeros."""
        start, _ = shard_range(self._num_rows, self._world.rank, self._world.size)
        with self._phase("kNN") as advance:
            places_M = knn_places(
                Voters(features_SD.float(), start, self._labels_of_voters()),
                queries_MD,
                self._test_labels_M,
                self._world,
                self._config.evaluation,
                advance,
            )
        return places_M.where(queries_MD.cpu().any(dim=1), UNREADABLE)

    def _probe_and_signs(self, bank: MemoryBank, test_MD: Tensor) -> dict[str, float | None]:
        """Return the accuracy of a linear probe that is fitted on the bank's rows, and the signs of
        collapse."""
        labels_N = self._labels_of_voters()
        moments = self._moments(bank, labels_N, self._num_classes)
        places_M = fit_probe(moments).places(test_MD, self._test_labels_M)
        places_M = places_M.where(test_MD.cpu().any(dim=1), UNREADABLE)
        return {"probe_bank": top1_accuracy(places_M, self._world), **self._signs(bank)}

    def _signs(self, bank: MemoryBank) -> dict[str, float | None]:
        """Return the early signs of collapse, for which no label is needed."""
        moments = self._moments(bank, torch.zeros(self._num_rows, dtype=torch.int64), 1)
        temperature = self._config.objective.temperature
        entropy = neighbour_entropy(bank, temperature, self._world)
        return {**signs_of_collapse(moments), "neighbour_entropy": entropy}

    def _moments(self, bank: MemoryBank, labels_N: Tensor, num_classes: int) -> Moments:
        """Return the sums over the bank's rows."""
        labels_S = labels_N[bank.start : bank.stop]
        return moments_of(bank.features_SD, labels_S, num_classes, self._world)

    def _labels_of_voters(self) -> Tensor:
        """Return labels [N], with -1 for rows that any rank could not read: they must not vote."""
        assert self._labels_N is not None
        labels_N = self._labels_N.clone()
        for rows in gather_objects(self._world, [*self._bad.reasons]):
            labels_N[rows] = -1
        return labels_N

    def _knn(self, features_SD: Tensor, queries_MD: Tensor) -> float:
        """Return top-1 accuracy of kNN over the test images of all ranks."""
        return top1_accuracy(self._places(features_SD, queries_MD), self._world)
