"""Probing: linear classifiers on frozen layers, trained over all ranks, saved, and gone on with.

B local batch, G global batch, M test images of this rank, L layers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.agreement import agree_now
from and_dist.bank import shard_range
from and_dist.checkpoint import find_whole, load_tensors, prune, save_checkpoint
from and_dist.collectives import reduce_sum
from and_dist.config import Config
from and_dist.data.augment import CENTRE, CORNERS
from and_dist.data.bad_images import BadImages
from and_dist.data.index import LabelledImages
from and_dist.data.loader import FeatureLoader, TrainingLoader
from and_dist.data.order import Order
from and_dist.display import Display
from and_dist.encoders import Encoder
from and_dist.evaluation.probe import PADDING, FrozenLayers, Probes, losses_of, places_in
from and_dist.evaluation.scores import UNREADABLE
from and_dist.guard import NOTHING, SAVE, Guard, Stopped
from and_dist.optim import build_optimiser, learning_rate, set_learning_rate
from and_dist.replicas import replicate
from and_dist.world import World

STEPS_BETWEEN_LOOKS = 20
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
        self._world, self._display, self._guard, self._folder = world, display, guard, folder
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
        self._steps_done, self._last_save = 0, time.monotonic()

    @property
    def _total_steps(self) -> int:
        return self._settings.epochs * self._order.steps_per_epoch

    def train(self) -> None:
        """From where an earlier start was stopped."""
        self._resume()
        run = self._config.run
        self._guard.watch(self._folder, run.stall_seconds, run.time_limit_seconds)
        with self._display.phase("linear classifiers") as advance:
            advance(self._steps_done / self._total_steps)
            while self._steps_done < self._total_steps:
                before = self._steps_done
                self._train_epoch(*divmod(before, self._order.steps_per_epoch))
                advance((self._steps_done - before) / self._total_steps)
        self._save()

    def _train_epoch(self, epoch: int, first: int) -> None:
        set_learning_rate(self._optimiser, learning_rate(self._settings, epoch))
        for step, batch in enumerate(self._loader.batches(epoch, first), first):
            self._guard.beat()
            self._train_step(batch.images_BCHW, batch.rows_B, self._order.num_images(step))
            self._steps_done += 1
            if self._steps_done % STEPS_BETWEEN_LOOKS == 0:
                self._look()
        mean_L = reduce_sum(self._world, self._sums_L) / len(self._labels_N)
        self.losses.append(mean_L.tolist())
        self._sums_L.zero_()
        text = "  ".join(f"{n} {v:.3f}" for n, v in zip(self.layers, mean_L.tolist(), strict=True))
        self._display.say(f"linear epoch {epoch + 1}/{self._settings.epochs}  loss {text}")

    def _train_step(self, images_BCHW: Tensor, rows_B: Tensor, num_real: int) -> None:
        labels_B = self._labels_N[rows_B.clamp(min=0)].where(rows_B >= 0, PADDING)
        logits_LBC = self._network(self._frozen(images_BCHW))
        loss_L = losses_of(logits_LBC, labels_B, num_real, self._world.size)
        loss_L.sum().backward()
        self._optimiser.step()
        self._optimiser.zero_grad()
        self._sums_L += loss_L.detach() * (num_real / self._world.size)

    def _look(self) -> None:
        """Has any rank been asked to stop, or is it time to save?"""
        is_late = time.monotonic() - self._last_save > 60 * self._config.run.save_minutes
        request = agree_now(self._guard.request() or (SAVE if is_late else NOTHING), self._world)
        if request == NOTHING:
            return
        self._save()
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
        views: list[Tensor] = []
        with torch.no_grad():
            for batch in loader.batches(np.arange(start, stop), crops):
                views.append(batch.images_BCHW.clone())
                if len(views) < len(crops):
                    continue
                if is_ten_crop:
                    views += [view.flip(-1) for view in views]
                at_B = batch.rows_B[batch.rows_B >= 0] - start
                real = [view[batch.rows_B >= 0] for view in views]
                places_LM[:, at_B] = places_in(self.probes, self._frozen, real, labels_M[at_B])
                views = []
        return places_LM

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
            "layers": self.layers,
            "settings": self._settings.model_dump(mode="json"),
            "losses": self.losses,
            "steps_done": self._steps_done,
        }

    def _save(self) -> None:
        reduce_sum(self._world, self._sums_L)
        self._keep_sums_once()
        state, name = self._plain(), f"s{self._steps_done:08}"
        save_checkpoint(self._folder, name, self._tensors(), state, self._world)
        prune(self._folder, 1, lambda _: False, self._world)
        self._last_save = time.monotonic()

    def _keep_sums_once(self) -> None:
        """What all ranks have summed lies with the coordinator, as it does in a checkpoint."""
        if not self._world.is_coordinator:
            self._sums_L.zero_()

    def _resume(self) -> None:
        found = find_whole(self._folder, self._world, self._display.say)
        if found is None:
            return
        path, state = found
        ours = self._plain()
        if any(state[key] != ours[key] for key in ("layers", "settings")):
            self._display.say(f"{path} was trained with other settings; training begins anew")
            return
        load_tensors(path, self._tensors(), self._world)
        self._keep_sums_once()
        self.losses = [list(row) for row in state["losses"]]
        self._steps_done = int(state["steps_done"])
        if self._steps_done < self._total_steps:
            self._display.say(f"continuing from {path}")
