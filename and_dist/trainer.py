"""Trainer: train() -> train_round() -> train_epoch() -> train_step(), Algorithm 1 of the paper.

B local batch, G global batch, N all rows, K neighbours.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from and_dist.bank import BankShard, draw_uniform_rows, shard_range
from and_dist.checkpoint import (
    as_sharded,
    load_tensors,
    local_rows,
    prune,
    read_latest,
    save_checkpoint,
)
from and_dist.collectives import broadcast_from_coordinator
from and_dist.config import Config
from and_dist.counter import derive_key
from and_dist.curriculum import Neighbourhoods, all_instances
from and_dist.data.bad_images import BadImages
from and_dist.data.cache import cache_in_memory
from and_dist.data.index import LabelledImages
from and_dist.data.loader import Batch, TrainingLoader
from and_dist.data.order import Order
from and_dist.discovery import discover
from and_dist.display import Display, format_seconds, percent
from and_dist.encoders import build_encoder
from and_dist.evaluation.evaluator import Evaluator
from and_dist.evaluation.neighbourhoods import in_one_line
from and_dist.meters import LossMeter, StepClock
from and_dist.metrics import MetricsFile
from and_dist.objective import gather_global_batch, sharded_nll
from and_dist.optim import build_optimiser, learning_rate, set_learning_rate
from and_dist.replicas import replicate
from and_dist.world import World


@dataclass(frozen=True)
class Progress:
    """What is finished: `epochs` epochs of round `round_index`, after `seconds` of that round."""

    round_index: int = 0
    epochs: int = 0
    seconds: float = 0.0

    @property
    def checkpoint_name(self) -> str:
        return f"r{self.round_index:02}-e{self.epochs:04}"


class Trainer:
    """One run on one rank. Everything that is saved is built here and filled by resume()."""

    def __init__(
        self,
        config: Config,
        world: World,
        train: LabelledImages,
        test: LabelledImages | None,
        display: Display,
    ) -> None:
        self.config = config
        self.world = world
        self.display = display
        self.num_rows = len(train.index)
        self.content_hash = train.index.content_hash
        self.checkpoints = config.folder / "checkpoints"
        self.order = Order(self.num_rows, config.optim.batch_size, config.seed)
        self.bad_images = BadImages(
            train.index, config.data.bad_images, self.say_aloud, left_out=train.left_out
        )
        index = cache_in_memory(train.index, config.data, world, self.bad_images)
        self.encoder = build_encoder(config.encoder, config.seed).to(world.device)
        self.loader = TrainingLoader(
            index, config.data, self.order, world, self.bad_images, self.encoder.precision
        )
        self.evaluator = Evaluator(config, train, test, world, self.bad_images)
        self.network = replicate(self.encoder, world, config.data.image_size)
        self.optimiser = build_optimiser(self.encoder, config.optim)
        self.bank = self._build_bank()
        self.neighbourhoods = all_instances(
            self.num_rows, config.curriculum.neighbours, world.device
        )
        self.progress = Progress()
        self.metrics = self.resume()

    def train(self) -> None:
        total = self._steps_before(self.config.curriculum.rounds + 1)
        done = self._steps_before(self.progress.round_index, self.progress.epochs)
        with self.display.training(total, done):
            if done == 0:
                self.initialise_bank()
                self.evaluate_baselines()
            for round_index in range(self.progress.round_index, self.config.curriculum.rounds + 1):
                self.train_round(round_index)
        self.metrics.close()

    def train_round(self, round_index: int) -> None:
        """Discovery, then epochs of training, then evaluation."""
        if self.progress.epochs == 0:
            self.discover(round_index)
        for epoch in range(self.progress.epochs, self.config.curriculum.epochs):
            started = time.monotonic()
            self.train_epoch(round_index, epoch)
            seconds = self.progress.seconds + time.monotonic() - started
            self.progress = Progress(round_index, epoch + 1, seconds)
            self.save()
        self.evaluate_round(round_index)
        self.progress = Progress(round_index + 1)

    def discover(self, round_index: int) -> None:
        """Anchors and their neighbours for this round; round 0 and instance learning have none."""
        started = time.monotonic()
        if round_index > 0 and self.config.method == "and":
            self.neighbourhoods = self._discover_with_display(round_index)
        self.progress = Progress(round_index, 0, time.monotonic() - started)

    def _discover_with_display(self, round_index: int) -> Neighbourhoods:
        config, started = self.config, time.monotonic()
        with self.display.phase(f"discovery of round {round_index}") as advance:
            found = discover(
                self.bank, self.world, round_index, config.curriculum.rounds,
                config.curriculum.neighbours, config.objective.temperature,
                config.discovery.search, config.discovery.recall,
                config.discovery.memory_bytes, advance,
            )  # fmt: skip
        if self.world.is_coordinator:
            seconds = time.monotonic() - started
            figures = self.evaluator.describe(found, self.neighbourhoods.anchors_S)
            self.metrics.write("discovery", round=round_index, seconds=seconds, **figures)
            self.display.say(in_one_line(round_index, figures, seconds))
        return found

    def train_epoch(self, round_index: int, epoch: int) -> None:
        rate = learning_rate(self.config.optim, epoch)
        set_learning_rate(self.optimiser, rate)
        meter, clock = LossMeter(self.world.device), StepClock()
        steps = self.order.steps_per_epoch
        first = self._steps_before(round_index, epoch)
        epoch_number = self._epoch_number(round_index, epoch)
        for step, batch in enumerate(self.loader.batches(epoch_number)):
            self.seed_step(epoch_number, step)
            loss = self.train_step(batch)
            meter.add(loss, step, self.order.num_images(step))
            clock.count(self.order.num_images(step))
            if (step + 1) % self.config.run.log_every and step + 1 < steps:
                continue
            self._check_finite(meter, round_index, epoch)
            loss_now, images_per_s = meter.recent(), clock.rate()
            self.metrics.write(
                "step", round=round_index, epoch=epoch, step=first + step + 1, loss=loss_now,
                lr=rate, images_per_s=images_per_s,
            )  # fmt: skip
            total = self._steps_before(self.config.curriculum.rounds + 1)
            where = f"round {round_index} epoch {epoch + 1}/{self.config.curriculum.epochs}"
            self.display.step(first + step + 1, total, where, loss_now, images_per_s)
        self.synchronise_buffers()
        self.bad_images.share(self.world, self.config.folder / "bad_images.txt")
        every = self.config.evaluation.every
        knn = self._knn_of_bank() if every and (epoch + 1) % every == 0 else None
        self.metrics.write(
            "epoch", round=round_index, epoch=epoch, loss=meter.mean(), lr=rate, knn_bank=knn
        )

    def say_aloud(self, text: str) -> None:
        """What any rank has to say, not the coordinator alone."""
        print(f"rank {self.world.rank}: {text}", file=sys.stderr, flush=True)

    def seed_step(self, epoch_number: int, step: int) -> None:
        """What an encoder draws at random (dropout) follows from the step, not from the past."""
        key = derive_key(self.config.seed, "step", epoch_number, step, self.world.rank)
        torch.manual_seed(int(key >> np.uint64(1)))

    def train_step(self, batch: Batch) -> Tensor:
        """Forward, loss, backward, optimiser, memory: the inner loop of Algorithm 1."""
        features_BD = self.network(batch.images_BCHW)
        neighbours_BK = self.neighbourhoods.neighbours_NK[batch.rows_B.clamp(min=0)]
        everyone = gather_global_batch(features_BD, batch.rows_B, neighbours_BK, self.world)
        temperature = self.config.objective.temperature
        loss = sharded_nll(features_BD, everyone, self.bank, self.world, temperature)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.bank.update(everyone.rows_G, everyone.features_GD)
        return loss.detach()

    def initialise_bank(self) -> None:
        """`bank.init: features` starts from what the fresh network makes of every image."""
        if self.config.bank.init == "features":
            dim = self.config.encoder.feature_dim
            self.bank.features_SD.copy_(self.evaluator.train_features(self.encoder, dim))

    def synchronise_buffers(self) -> None:
        """Running statistics are the coordinator's, as in DDP, but sent when they are needed."""
        if self.world.size > 1:
            for buffer in self.encoder.buffers():
                broadcast_from_coordinator(self.world, buffer)

    def evaluate_baselines(self) -> None:
        """What the untrained network and the pixels themselves are worth."""
        if self.config.evaluation.baselines:
            started = time.monotonic()
            pixels = self.evaluator.knn_of_raw_pixels()
            untrained = self.evaluator.knn(self.encoder)
            self.metrics.write(
                "baselines", raw_pixels=pixels, random=untrained,
                seconds=time.monotonic() - started,
            )  # fmt: skip

    def evaluate_round(self, round_index: int) -> None:
        started = time.monotonic()
        knn_bank, knn = self._knn_of_bank(), self.evaluator.knn(self.encoder)
        seconds = self.progress.seconds + time.monotonic() - started
        anchors = len(self.neighbourhoods.anchors_S)
        agreement = self.evaluator.consistency(self.neighbourhoods)
        self.metrics.write(
            "round", round=round_index, anchors=anchors, consistency=agreement,
            knn_bank=knn_bank, knn=knn, seconds=seconds,
        )  # fmt: skip
        self.display.say(
            f"round {round_index} done: {anchors} anchors, consistency {percent(agreement)}, "
            f"kNN {percent(knn)} (bank {percent(knn_bank)}), {format_seconds(seconds)}"
        )

    def save(self) -> None:
        """One checkpoint of everything that training goes on from."""
        state = {
            "progress": asdict(self.progress),
            "num_anchors": len(self.neighbourhoods.anchors_S),
            "images": {"rows": self.num_rows, "content_hash": self.content_hash},
            "config": self.config.model_dump(mode="json"),
            "bad_images": self.bad_images.reasons,
            "metrics_bytes": self.metrics.flushed_size(),
        }
        name = self.progress.checkpoint_name
        save_checkpoint(self.checkpoints, name, self._tensors(), state, self.world)
        last_of_rounds = {
            Progress(r, self.config.curriculum.epochs).checkpoint_name
            for r in range(self.config.curriculum.rounds + 1)
        }
        prune(self.checkpoints, self.config.run.keep, last_of_rounds, self.world)

    def resume(self) -> MetricsFile:
        """Go on from the newest checkpoint, if there is one; its metrics with it."""
        found = read_latest(self.checkpoints)
        metrics_bytes = 0
        if found is not None:
            checkpoint, state = found
            self._load(checkpoint, state)
            metrics_bytes = state["metrics_bytes"]
            self.display.say(f"continuing from {checkpoint}")
        path = self.config.folder / "metrics.jsonl"
        return MetricsFile(path, metrics_bytes, self.world.is_coordinator)

    def _load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        if state["images"]["content_hash"] != self.content_hash:
            raise ValueError(
                f"run folder {self.config.folder} was trained on other images than "
                f"data.train={self.config.data.train} holds now "
                f"({state['images']['rows']} rows then, {self.num_rows} now)"
            )
        anchors_S = torch.empty(state["num_anchors"], dtype=torch.int64, device=self.world.device)
        self.neighbourhoods = replace(self.neighbourhoods, anchors_S=anchors_S)
        tensors = self._tensors()
        load_tensors(checkpoint, tensors, self.world)
        self.bank.features_SD.copy_(local_rows(tensors["bank"]))
        self.bad_images.reasons = {int(r): why for r, why in state["bad_images"].items()}
        self.progress = Progress(**state["progress"])

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds, by name, as it lies in memory."""
        momentum = {
            f"momentum.{name}": self.optimiser.state[parameter]["momentum_buffer"]
            for name, parameter in self.encoder.named_parameters()
            if "momentum_buffer" in self.optimiser.state[parameter]
        }
        encoder = {f"encoder.{name}": t for name, t in self.encoder.state_dict().items()}
        table = self.neighbourhoods
        return {
            **encoder,
            **momentum,
            "bank": as_sharded(self.bank, self.world),
            "neighbours": table.neighbours_NK,
            "entropy": table.entropy_N,
            "anchors": table.anchors_S,
        }

    def _build_bank(self) -> BankShard:
        config = self.config
        start, stop = shard_range(self.num_rows, self.world.rank, self.world.size)
        rows_SD = draw_uniform_rows(start, stop, config.encoder.feature_dim, config.seed)
        return BankShard(
            rows_SD.to(self.world.device, getattr(torch, config.bank.dtype)),
            start,
            self.num_rows,
            config.bank.update_rate,
            config.bank.renormalise,
        )

    def _knn_of_bank(self) -> float | None:
        return self.evaluator.knn_of_bank(self.encoder, self.bank)

    def _epoch_number(self, round_index: int, epoch: int) -> int:
        """Epochs counted over all rounds: what order and augmentation follow from."""
        return round_index * self.config.curriculum.epochs + epoch

    def _steps_before(self, round_index: int, epoch: int = 0) -> int:
        return self._epoch_number(round_index, epoch) * self.order.steps_per_epoch

    def _check_finite(self, meter: LossMeter, round_index: int, epoch: int) -> None:
        step = meter.first_bad_step()
        if step is None:
            return
        rows = self.order.global_rows(self._epoch_number(round_index, epoch), step).tolist()
        self.metrics.write("non_finite", round=round_index, epoch=epoch, step=step, rows=rows)
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise RuntimeError(
            f"the loss is not finite at round {round_index}, epoch {epoch}, step {step} of it, "
            f"rows {shown} (all {len(rows)} in {self.metrics.path}); "
            f"the last checkpoint is whole: {self.checkpoints}"
        )
