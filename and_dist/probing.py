"""Probing: linear classifiers on frozen layers, trained over all ranks, saved, and gone on with.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.agreement import Agreement, agree_now
from and_dist.bank import all_shards, shard_range
from and_dist.checkpoint import find_whole, load_tensors, prune, save_checkpoint
from and_dist.collectives import gather_batch, reduce_sum
from and_dist.config import Config
from and_dist.data.augment import CENTRE, CORNERS
from and_dist.data.bad_images import BadImages
from and_dist.data.index import LabelledImages
from and_dist.data.loader import Batch, FeatureLoader, TrainingLoader
from and_dist.data.order import Order
from and_dist.display import Advance, Display
from and_dist.encoders import Encoder
from and_dist.evaluation.probe import PADDING, FrozenLayers, Probes, losses_of, places_in
from and_dist.evaluation.scores import UNREADABLE
from and_dist.guard import NOTHING, SAVE, Guard, Stopped
from and_dist.layout import SharedFailure
from and_dist.optim import build_optimiser, learning_rate, set_learning_rate
from and_dist.replicas import replicate
from and_dist.schema import LinearConfig
from and_dist.world import World

NO_COLOURS = {"jitter": 0.0, "hue": 0.0, "grayscale": 0.0}
"""Training images are cropped and mirrored as the encoder's were, and not coloured."""


class Probing:
    """The classifiers of one checkpoint; everything that is saved is built here."""

    def __init__(
        self,
        config: Config,
        encoder: Encoder,
        images: LabelledImages,
        layers: Sequence[str],
        world: World,
        display: Display,
        guard: Guard,
        folder: Path,
    ) -> None:
        assert images.labels_N is not None
        self._config, self._settings = config, config.evaluation.linear
        self._world, self._display, self._guard = world, display, guard
        self._folder = folder / f"probe-{_digest(self._settings, layers)}"
        self.layers = list(layers)
        self._labels_N = torch.tensor(images.labels_N, device=world.device)
        self._order = Order(len(images.index), self._settings.batch_size, config.seed)
        data = config.data.model_copy(update=NO_COLOURS)
        bad = BadImages(images.index, data.bad_images)
        self._loader = TrainingLoader(
            images.index, data, self._order, world, bad, encoder.precision
        )
        self._frozen = FrozenLayers(encoder, layers)
        side = config.data.image_size
        example = self._frozen(torch.zeros(2, 3, side, side, device=world.device))
        widths = {name: features.shape[1] for name, features in example.items()}
        classes = len(images.class_names)
        self.probes = Probes(widths, classes, config.seed).to(world.device)
        self._network = replicate(self.probes, world, example)
        self._optimiser = build_optimiser([self.probes], self._settings)
        self.losses: list[list[float]] = []
        """Of every layer, by epoch."""
        self._sums_L = torch.zeros(len(self.layers), dtype=torch.float64, device=world.device)
        self._agreement = Agreement()
        self._steps_done, self._last_save = 0, time.monotonic()

    @property
    def _total_steps(self) -> int:
        return self._settings.epochs * self._order.steps_per_epoch

    def train(self) -> None:
        """From where an earlier start was stopped."""
        self._resume()
        run = self._config.run
        self._guard.watch(self._folder, run.stall_seconds, run.time_limit_seconds)
        first = self._steps_done
        with self._display.phase("linear classifiers") as advance:
            advance(first / self._total_steps)
            while self._steps_done < self._total_steps:
                self._train_epoch(*divmod(self._steps_done, self._order.steps_per_epoch), advance)
        if self._steps_done > first:
            self._save()

    def _train_epoch(self, epoch: int, first: int, advance: Advance) -> None:
        set_learning_rate(self._optimiser, learning_rate(self._settings, epoch))
        for step, batch in enumerate(self._loader.batches(epoch, first), first):
            self._guard.beat()
            self._train_step(batch.images_BCHW, batch.rows_B, self._order.num_images(step))
            self._steps_done += 1
            advance(1 / self._total_steps)
            if step + 1 < self._order.steps_per_epoch:
                self._answer(self._agreement.take())
        self._end_epoch(epoch)

    def _end_epoch(self, epoch: int) -> None:
        mean_L = reduce_sum(self._world, self._sums_L) / len(self._labels_N)
        self._sums_L.zero_()
        means = dict(zip(self.layers, mean_L.tolist(), strict=True))
        wild = [name for name, mean in means.items() if not math.isfinite(mean)]
        if wild:
            raise SharedFailure(
                f"the loss of the linear classifier on {', '.join(wild)} is not finite in epoch "
                f"{epoch + 1}; a smaller evaluation.linear.lr than {self._settings.lr} may help"
            )
        self.losses.append(list(means.values()))
        text = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        self._display.say(f"linear epoch {epoch + 1}/{self._settings.epochs}  loss {text}")

    def _train_step(self, images_BCHW: Tensor, rows_B: Tensor, num_real: int) -> None:
        labels_B = self._labels_N[rows_B.clamp(min=0)].where(rows_B >= 0, PADDING)
        logits_LBC = self._network(self._frozen(images_BCHW))
        loss_L = losses_of(logits_LBC, labels_B, num_real, self._world.size)
        loss_L.sum().backward()
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._sums_L += loss_L.detach() * (num_real / self._world.size)
        self._agreement.hear(self._gather_requests())

    def _gather_requests(self) -> Tensor:
        """What each rank has been asked to do; the coordinator also looks at the clock."""
        request = self._guard.request()
        is_late = time.monotonic() - self._last_save > 60 * self._config.run.save_minutes
        if request == NOTHING and self._world.is_coordinator and is_late:
            request = SAVE
        mine = torch.tensor([[request]], dtype=torch.uint8, device=self._world.device)
        return gather_batch(self._world, [mine])[0]

    def _answer(self, request: int) -> None:
        """What all ranks have agreed on."""
        if request == NOTHING:
            return
        self._save()
        self._agreement.forget()
        if request > SAVE:
            raise Stopped(request, f"after {self._steps_done} of {self._total_steps} steps")

    def places(self, test: LabelledImages, is_ten_crop: bool) -> Tensor:
        """[L, M] the place of the true class of this rank's test images; UNREADABLE for some."""
        world, data = self._world, self._config.data
        assert test.labels_N is not None
        start, stop = shard_range(len(test.index), world.rank, world.size)
        labels_M = torch.tensor(test.labels_N[start:stop], device=world.device)
        bad = BadImages(test.index, data.bad_images)
        size = self._settings.batch_size
        loader = FeatureLoader(test.index, data, size, world.device, bad)
        crops = (*CORNERS, CENTRE) if is_ten_crop else (CENTRE,)
        places_LM = torch.full((len(self.layers), stop - start), UNREADABLE, device=world.device)
        (first, last), *_ = all_shards(len(test.index), world.size)
        num_blocks = -(-(last - first) // size)
        batches = loader.batches(np.arange(start, stop), crops)
        with torch.no_grad(), self._display.phase("linear classifiers, test images") as advance:
            for _ in range(num_blocks):  # as many on every rank, so that all can stop
                block = list(islice(_kept(batches), len(crops)))
                if block:
                    at_B = block[0].rows_B[block[0].rows_B >= 0] - start
                    views = self._views_of(block, is_ten_crop)
                    places_LM[:, at_B] = places_in(self.probes, self._frozen, views, labels_M[at_B])
                advance(1 / num_blocks)
                self._heed()
        return places_LM

    def _views_of(self, block: Sequence[Batch], is_ten_crop: bool) -> list[Tensor]:
        """Of the images that could be read."""
        views = [batch.images_BCHW[batch.rows_B >= 0] for batch in block]
        return views + [view.flip(-1) for view in views] if is_ten_crop else views

    def _heed(self) -> None:
        """Everything is saved by now; a request to stop is followed at once."""
        self._guard.beat()
        request = agree_now(self._guard.request(), self._world)
        if request > SAVE:
            raise Stopped(request, "the classifiers are trained and saved")

    def _tensors(self) -> dict[str, Tensor]:
        state = self._optimiser.state
        named = dict(self.probes.named_parameters())
        momentum = {
            f"momentum.{name}": state[parameter]["momentum_buffer"]
            for name, parameter in named.items()
            if "momentum_buffer" in state[parameter]
        }
        return {**{n: p.detach() for n, p in named.items()}, **momentum, "sums": self._sums_L}

    def _plain(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "steps_done": self._steps_done,
        }

    def _save(self) -> None:
        reduce_sum(self._world, self._sums_L)
        self._keep_sums_once()
        state, name = self._plain(), f"s{self._steps_done:08}"
        on_cpu = replace(self._world, group=self._world.side_group, device=torch.device("cpu"))
        tensors = {at: tensor.cpu() for at, tensor in self._tensors().items()}
        save_checkpoint(self._folder, name, tensors, state, on_cpu)
        prune(self._folder, 1, lambda _: False, on_cpu)
        self._last_save = time.monotonic()

    def _keep_sums_once(self) -> None:
        """What all ranks have summed lies with the coordinator, as it does in a checkpoint."""
        if not self._world.is_coordinator:
            self._sums_L.zero_()

    def _resume(self) -> None:
        anew = f"delete {self._folder}"
        found = find_whole(self._folder, self._world, self._display.say, anew)
        if found is None:
            return
        path, state = found
        load_tensors(path, self._tensors(), self._world)
        self._keep_sums_once()
        self.losses = [list(row) for row in state["losses"]]
        self._steps_done = int(state["steps_done"])
        if self._steps_done < self._total_steps:
            self._display.say(f"continuing from {path}")


def _digest(settings: LinearConfig, layers: Sequence[str]) -> str:
    """What is trained otherwise lies elsewhere."""
    plain = json.dumps([settings.model_dump(mode="json"), list(layers)])
    return hashlib.sha256(plain.encode()).hexdigest()[:8]


def _kept(batches: Iterator[Batch]) -> Iterator[Batch]:
    """On a CPU a loader writes each batch over the one before."""
    return (batch._replace(images_BCHW=batch.images_BCHW.clone()) for batch in batches)
