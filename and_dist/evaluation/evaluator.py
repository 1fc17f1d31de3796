"""Evaluator: the labels of a run, and every figure they are allowed to give.

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
from and_dist.evaluation.features import RawPixels, extract_features
from and_dist.evaluation.knn import knn_places
from and_dist.evaluation.neighbourhood_stats import consistency, describe_neighbourhoods
from and_dist.method.memory_bank import MemoryBank, all_shards, shard_range
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.utils.progress import Phase

IMAGES_PER_BATCH = 256


class Evaluator:
    """Holds what training may not see. Figures are None where labels or test images are missing."""

    def __init__(
        self,
        config: Config,
        train: LabelledImages,
        test: LabelledImages | None,
        world: World,
        bad: BadImages,
        phase: Phase,
    ) -> None:
        self._config = config
        self._phase = phase
        self._world = world
        self._labels_N = None if train.labels_N is None else torch.tensor(train.labels_N)
        self._train_loader = self._loader(train, bad)
        self._test_loader: FeatureLoader | None = None
        self._num_rows = len(train.index)
        self._bad, self._bad_test = bad, None
        if test is not None and test.labels_N is not None and self._labels_N is not None:
            self._num_test = len(test.index)
            start, stop = shard_range(self._num_test, world.rank, world.size)
            self._test_labels_M = torch.tensor(test.labels_N[start:stop])
            self._bad_test = BadImages(test.index, config.data.bad_images, left_out=test.left_out)
            self._test_loader = self._loader(test, self._bad_test)

    def train_features(self, network: nn.Module, dim: int) -> Tensor:
        """[S, dim] of this rank's rows."""
        return self._features(
            network, self._train_loader, self._num_rows, dim, "features of the training images"
        )

    def knn(self, network: nn.Module) -> float | None:
        """kNN accuracy with the training images' features computed anew."""
        dim = self._config.encoder.feature_dim
        if self._test_loader is None:
            return None
        return self._knn(self.train_features(network, dim), self._test_features(network, dim))

    def knn_of_bank(self, network: nn.Module, bank: MemoryBank) -> float | None:
        """kNN accuracy with the bank as the training images' features."""
        if self._test_loader is None:
            return None
        return self._knn(bank.features_SD, self._test_features(network, bank.features_SD.shape[1]))

    def knn_of_both(
        self, network: nn.Module, bank: MemoryBank
    ) -> tuple[float, float] | tuple[None, None]:
        """As knn_of_bank() and knn(), which look at the test images once."""
        if self._test_loader is None:
            return None, None
        by_bank_M, anew_M = self.places_of_both(network, bank)
        return top1_accuracy(by_bank_M, self._world), top1_accuracy(anew_M, self._world)

    def places_of_both(self, network: nn.Module, bank: MemoryBank) -> tuple[Tensor, Tensor]:
        """[M] twice, of this rank's test images: how many classes kNN puts before the true one."""
        dim = bank.features_SD.shape[1]
        train_SD = self.train_features(network, dim)  # which shows what cannot be read
        test_MD = self._test_features(network, dim)
        anew_M = self._places(train_SD, test_MD)
        del train_SD  # before the bank's rows are brought to float32
        return self._places(bank.features_SD, test_MD), anew_M

    def share_bad_images(self, folder: Path) -> None:
        """What any rank could not read is written down; RuntimeError where that is too much."""
        self._bad.share(self._world, folder / "bad_images.txt")
        if self._bad_test is not None:
            self._bad_test.share(self._world, folder / "bad_test_images.txt")

    @property
    def vote(self) -> str:
        """K and tau of every kNN figure."""
        return self._config.evaluation.votes_among(self._num_rows)

    def baselines(self, untrained: nn.Module) -> dict[str, float | None]:
        """What the pixels, if they are not too many, and the untrained network are worth."""
        started = time.monotonic()
        pixels = self.knn_of_raw_pixels() if self.pixel_bytes <= MOST_PIXEL_BYTES else None
        random = self.knn(untrained)
        seconds = time.monotonic() - started
        return {"raw_pixels": pixels, "random": random, "seconds": seconds}

    @property
    def pixel_bytes(self) -> int:
        rows = -(-self._num_rows // self._world.size)
        return 4 * rows * 3 * self._config.data.image_size**2

    def knn_of_raw_pixels(self) -> float | None:
        pixels, dim = RawPixels(), 3 * self._config.data.image_size**2
        if self._test_loader is None:
            return None
        return self._knn(self.train_features(pixels, dim), self._test_features(pixels, dim))

    def consistency(self, neighbourhoods: Neighbourhoods) -> float | None:
        if self._labels_N is None:
            return None
        return consistency(neighbourhoods, self._labels_N)

    def describe(self, neighbourhoods: Neighbourhoods, previous_A: Tensor) -> dict[str, Any]:
        """Of a discovery, whose last one had the anchors previous_S."""
        return describe_neighbourhoods(neighbourhoods, previous_A, self._labels_N)

    def _loader(self, images: LabelledImages, bad: BadImages) -> FeatureLoader:
        device = self._world.device
        return FeatureLoader(images.index, self._config.data, IMAGES_PER_BATCH, device, bad)

    def _test_features(self, network: nn.Module, dim: int) -> Tensor:
        assert self._test_loader is not None
        return self._features(
            network, self._test_loader, self._num_test, dim, "features of the test images"
        )

    def _features(
        self, network: nn.Module, loader: FeatureLoader, num_images: int, dim: int, what: str
    ) -> Tensor:
        """Of this rank's share of the images."""
        (_, longest), *_ = all_shards(num_images, self._world.size)
        start, stop = shard_range(num_images, self._world.rank, self._world.size)
        with self._phase(what) as advance:
            return extract_features(network, loader, start, stop, dim, longest, advance)

    def _places(self, features_SD: Tensor, queries_MD: Tensor) -> Tensor:
        start, _ = shard_range(self._num_rows, self._world.rank, self._world.size)
        settings = self._config.evaluation
        with self._phase("kNN") as advance:
            places_M = knn_places(
                features_SD.float(),
                start,
                self._voters(),
                queries_MD,
                self._test_labels_M,
                self._world,
                settings.knn,
                settings.knn_temperature,
                advance,
            )
        return places_M.where(queries_MD.cpu().any(dim=1), UNREADABLE)

    def _voters(self) -> Tensor:
        """[N] labels; -1 of rows that a rank could not read, whose features say nothing."""
        assert self._labels_N is not None
        labels_N = self._labels_N.clone()
        for rows in gather_objects(self._world, [*self._bad.reasons]):
            labels_N[rows] = -1
        return labels_N

    def _knn(self, features_SD: Tensor, queries_MD: Tensor) -> float:
        return top1_accuracy(self._places(features_SD, queries_MD), self._world)
