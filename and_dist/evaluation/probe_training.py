"""Train linear classifiers on frozen layers over all ranks, with checkpoints to resume from.

B local batch, G global batch, M test images of this rank, L layers.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from and_dist.checkpoint.names import probe_name
from and_dist.checkpoint.reader import OpenedCheckpoint, known_bad
from and_dist.checkpoint.storage import find_latest_valid, load_tensors, prune, save_checkpoint
from and_dist.config.optim_schema import LinearConfig
from and_dist.config.schema import Config, DataConfig
from and_dist.data.augment import CENTRE, CORNERS, published_views, training_views
from and_dist.data.index import LabelledImages
from and_dist.data.loader import Batch, FeatureLoader, RandomViews, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.collectives import gather_batch, reduce_sum
from and_dist.distributed.ddp import replicate
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.stop_consensus import StopConsensus, stoppable_phase
from and_dist.distributed.watchdog import NOTHING, SAVE, Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.evaluation.accuracy import UNREADABLE
from and_dist.evaluation.probe import (
    PADDING,
    FrozenLayers,
    Probes,
    losses_of,
    places_in,
    whole_views,
)
from and_dist.method.memory_bank import all_shards, shard_range
from and_dist.models.learning_rate import learning_rate
from and_dist.models.optim import build_optimiser, set_learning_rate
from and_dist.runs.console import Display
from and_dist.utils.progress import Advance

NO_COLOURS = {"jitter": 0.0, "hue": 0.0, "grayscale": 0.0}
"""Values of config.data for the classifiers, whose images keep their colours."""
VIEWS: dict[str, RandomViews] = {"as_training": training_views, "published": published_views}
"""Crops and flips of the training images by evaluation.linear.crops."""


def data_of_classifiers(config: Config) -> DataConfig:
    """Return the config's data as the classifiers see them: colours unchanged, and a resize."""
    data = config.data.model_copy(update=NO_COLOURS)
    if config.evaluation.linear.crops == "published" and data.test_resize is None:
        return data.model_copy(update={"test_resize": data.image_size * 256 // 224})
    return data


class ProbeTraining:
    """Train, save, resume and test the linear classifiers of one checkpoint."""

    def __init__(
        self,
        opened: OpenedCheckpoint,
        frozen: FrozenLayers,
        images: LabelledImages,
        world: World,
        display: Display,
        watchdog: Watchdog,
    ) -> None:
        """Build the loader, the classifiers and their optimiser; the images need labels."""
        assert images.labels_N is not None
        config = opened.config
        self._config, self._settings = config, config.evaluation.linear
        self._world, self._display, self._watchdog = world, display, watchdog
        self._folder = opened.evaluation
        self._saved = (
            self._folder / f"probe-{_digest(self._settings, frozen.names, opened.weights)}"
        )
        self.layers = frozen.names
        self._labels_N = torch.tensor(images.labels_N, device=world.device)
        self._order = Order(len(images.index), self._settings.batch_size, config.seed)
        self._data = data_of_classifiers(config)
        self._bad = known_bad(opened, images)
        self._loader = TrainingLoader(
            images.index, self._data, self._order, world, self._bad, frozen.encoder.precision
        )
        self._frozen = frozen
        side = config.data.image_size
        example = self._frozen(torch.zeros(2, 3, side, side, device=world.device))
        widths = {name: features.shape[1] for name, features in example.items()}
        classes = len(images.class_names)
        self.probes = Probes(widths, classes, config.seed).to(world.device)
        self._network = replicate(self.probes, world, example)
        self._optimiser = build_optimiser([self.probes], self._settings)
        self.losses: list[list[float]] = []
        """The mean loss of each layer, one list per finished epoch."""
        self._sums = torch.zeros(len(self.layers) + 1, dtype=torch.float64, device=world.device)
        """This rank's sums over the epoch so far: each layer's loss, then the number of images."""
        self._stop_consensus = StopConsensus()
        self._steps_done, self._last_save = 0, time.monotonic()

    @property
    def _total_steps(self) -> int:
        """Return the number of steps of all epochs."""
        return self._settings.epochs * self._order.steps_per_epoch

    def train(self) -> None:
        """Train all epochs, or those that are left after the newest checkpoint; save at the end.

        Raise Stopped if a rank is asked to stop, and AllRanksError if a loss is not finite.
        """
        self._resume()
        first = self._steps_done
        with self._display.phase("linear classifiers") as advance:
            advance(first / self._total_steps)
            while self._steps_done < self._total_steps:
                self._train_epoch(*divmod(self._steps_done, self._order.steps_per_epoch), advance)
        if self._steps_done > first:
            self._save()

    def _train_epoch(self, epoch: int, first: int, advance: Advance) -> None:
        """Train one epoch from step `first` on."""
        set_learning_rate(self._optimiser, learning_rate(self._settings, epoch))
        batches = self._loader.batches(epoch, first, VIEWS[self._settings.crops])
        for step, batch in enumerate(batches, first):
            self._watchdog.beat()
            self._train_step(batch)
            self._steps_done += 1
            advance(1 / self._total_steps)
            # After the last step the epoch's sums have to be turned into losses before a save.
            if step + 1 < self._order.steps_per_epoch:
                self._handle_stop_request(self._stop_consensus.latest())
        self._end_epoch(epoch)

    def _end_epoch(self, epoch: int) -> None:
        """Log the epoch's mean losses of all ranks; raise AllRanksError unless all are finite."""
        *sums, count = reduce_sum(self._world, self._sums).tolist()
        self._sums.zero_()
        means = {name: total / count for name, total in zip(self.layers, sums, strict=True)}
        diverged = [name for name, mean in means.items() if not math.isfinite(mean)]
        if diverged:
            raise AllRanksError(
                f"the loss of the linear classifier on {', '.join(diverged)} is not finite in "
                f"epoch {epoch + 1}; a smaller evaluation.linear.lr than {self._settings.lr} may "
                "help"
            )
        self.losses.append(list(means.values()))
        text = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        self._display.say(f"linear epoch {epoch + 1}/{self._settings.epochs}  loss {text}")

    def _train_step(self, batch: Batch) -> None:
        """Take one step by the mean loss over the readable images of all ranks."""
        is_real_B = batch.rows_B >= 0
        num_real = is_real_B.sum()
        mine = torch.tensor([[self._request()]], device=self._world.device)
        requests_W, num_real_W = gather_batch(self._world, [mine, num_real[None]])
        labels_B = self._labels_N[batch.rows_B.clamp(min=0)].where(is_real_B, PADDING)
        sums_L = losses_of(self._network(self._frozen(batch.images_BCHW)), labels_B)
        # DDP averages gradients over the ranks, so the factor `size` turns its mean into a sum.
        share = self._world.size / num_real_W.sum().clamp(min=1)
        (sums_L.sum() * share).backward()
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._sums += torch.cat([sums_L.detach(), num_real[None]])
        self._stop_consensus.record(requests_W)

    def _request(self) -> int:
        """Return this rank's request; after save_minutes the coordinator asks for a save."""
        request = self._watchdog.request()
        is_late = time.monotonic() - self._last_save > 60 * self._config.run.save_minutes
        return SAVE if request == NOTHING and self._world.is_coordinator and is_late else request

    def _handle_stop_request(self, request: int) -> None:
        """Save if all ranks have agreed to save or stop; raise Stopped for a request to stop."""
        if request == NOTHING:
            return
        self._save()
        self._stop_consensus.reset()
        if request > SAVE:
            raise Stopped(request, f"after {self._steps_done} of {self._total_steps} steps")

    def places(self, test: LabelledImages, is_ten_crop: bool) -> Tensor:
        """Return [L, M] the places of the true class of this rank's test images.

        The place of an image that cannot be read is UNREADABLE. Write the list of these images, and
        raise Stopped if a rank is asked to stop.
        """
        world, data = self._world, self._data
        assert test.labels_N is not None
        start, stop = shard_range(len(test.index), world.rank, world.size)
        labels_M = torch.tensor(test.labels_N[start:stop], device=world.device)
        bad = BadImages(test.index, data.bad_images, left_out=test.left_out)
        size = self._settings.batch_size
        loader = FeatureLoader(test.index, data, size, world.device, bad)
        crops = (*CORNERS, CENTRE) if is_ten_crop else (CENTRE,)
        places_LM = torch.full((len(self.layers), stop - start), UNREADABLE, device=world.device)
        (first, last), *_ = all_shards(len(test.index), world.size)
        num_blocks = -(-(last - first) // size)
        batches = loader.batches(np.arange(start, stop), crops)
        phase = self._display.phase("linear classifiers, test images")
        with torch.no_grad(), stoppable_phase(phase, self._watchdog, world, self._stop) as advance:
            # Every rank runs the same number of blocks, so that all ranks can stop together.
            for _ in range(num_blocks):
                block = list(islice(_copies(batches), len(crops)))
                if block:
                    at_B, views = whole_views(block, is_ten_crop)
                    at_B -= start
                    places_LM[:, at_B] = places_in(self.probes, self._frozen, views, labels_M[at_B])
                advance(1 / num_blocks)
        bad.share(world, self._folder / "bad_test_images.txt")
        return places_LM

    def _stop(self, request: int) -> None:
        """Raise Stopped: the classifiers are saved already."""
        raise Stopped(request, "the classifiers are trained and saved")

    def _tensors(self) -> dict[str, Tensor]:
        """Return weights and momentum buffers by name, as a checkpoint holds them."""
        state = self._optimiser.state
        named = dict(self.probes.named_parameters())
        momentum = {
            f"momentum.{name}": state[parameter]["momentum_buffer"]
            for name, parameter in named.items()
            if "momentum_buffer" in state[parameter]
        }
        return {**{n: p.detach() for n, p in named.items()}, **momentum}

    def _take_sums(self, sums: Sequence[float]) -> None:
        """Give the coordinator the epoch's sums over all ranks, and the other ranks zeros.

        The sum over the ranks stays the same, for any number of ranks after a resume.
        """
        taken = torch.tensor(sums, dtype=torch.float64)
        self._sums.copy_(taken if self._world.is_coordinator else torch.zeros_like(taken))

    def _save(self) -> None:
        """Write a checkpoint and delete the one before; all ranks call this together."""
        self._bad.share(self._world, self._folder / "bad_images.txt")
        sums = reduce_sum(self._world, self._sums).tolist()
        self._take_sums(sums)
        name = probe_name(self._steps_done)
        state = {
            "losses": self.losses,
            "steps_done": self._steps_done,
            "sums": sums,
            "bad_images": dict(self._bad.reasons),
        }
        on_cpu = replace(self._world, group=self._world.side_group, device=torch.device("cpu"))
        tensors = {at: tensor.cpu() for at, tensor in self._tensors().items()}
        save_checkpoint(self._saved, name, tensors, state, on_cpu)
        prune(self._saved, 1, lambda _: False, on_cpu)
        self._last_save = time.monotonic()

    def _resume(self) -> None:
        """Load the newest valid checkpoint, if any; raise ValueError if all of them are damaged."""
        anew = f"delete {self._saved}"
        found = find_latest_valid(self._saved, self._world, self._display.say, anew, "sums")
        if found is None:
            return
        path, state = found
        load_tensors(path, self._tensors(), self._world)
        self._take_sums(state["sums"])
        self._bad.reasons |= {int(row): why for row, why in state["bad_images"].items()}
        self.losses = [list(row) for row in state["losses"]]
        self._steps_done = int(state["steps_done"])
        if self._steps_done < self._total_steps:
            self._display.say(f"continuing from {path}")


def _digest(settings: LinearConfig, layers: Sequence[str], weights: str) -> str:
    """Return eight hex digits that differ for other settings, layers or encoder weights.

    They are part of the folder's name, so a resume never finds classifiers trained otherwise.
    """
    values = settings.model_dump(mode="json")
    if settings.crops == "as_training":
        del values["crops"]  # classifiers of before there was this key are to be found
    plain = json.dumps([values, list(layers), weights])
    return hashlib.sha256(plain.encode()).hexdigest()[:8]


def _copies(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Copy the images of each batch: on a CPU the loader reuses the memory for the next batch."""
    return (batch._replace(images_BCHW=batch.images_BCHW.clone()) for batch in batches)
