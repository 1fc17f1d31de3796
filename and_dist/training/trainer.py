"""Trainer: train() -> train_round() -> train_epoch() -> train_step(), Algorithm 1 of the paper.

B local batch, G global batch, N all rows, K neighbours.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from and_dist.config.schema import Config
from and_dist.data.cache import cache_in_memory
from and_dist.data.index import LabelledImages
from and_dist.data.loader import Batch, TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.ddp import replicate, reset_powersgd_state, seed_step, synchronise
from and_dist.distributed.launch_env import AllRanksError
from and_dist.distributed.stop_consensus import StopConsensus, stoppable_phase
from and_dist.distributed.watchdog import NOTHING, SAVE, Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.evaluation.evaluator import Evaluator
from and_dist.method.loss import GlobalBatch, gather_global_batch, sharded_nll
from and_dist.models.encoders import build_encoder
from and_dist.models.optim import learning_rate, parameters_of, set_learning_rate
from and_dist.objectives.base import ObjectiveContext
from and_dist.objectives.registry import build_objective, learns_from_labels
from and_dist.runs.console import Display
from and_dist.runs.folder import record_resume
from and_dist.runs.metrics_file import read_metrics
from and_dist.runs.run_recorder import RunRecorder
from and_dist.runs.schedule import Schedule
from and_dist.training.checkpointing import CheckpointManager
from and_dist.training.meters import StepClock, memory_mb
from and_dist.training.profiling import StepProfile
from and_dist.training.recovery import NonFiniteLoss, describe_batch
from and_dist.training.round_setup import RoundSetup
from and_dist.training.state import Progress, build_bank, build_state
from and_dist.utils.formatting import format_seconds, percent
from and_dist.utils.progress import Advance
from and_dist.utils.step_phases import step_phase


class Trainer:
    """One run on one rank. Everything that is saved is built here and filled by resume()."""

    def __init__(
        self,
        config: Config,
        world: World,
        train: LabelledImages,
        test: LabelledImages | None,
        display: Display,
        watchdog: Watchdog,
    ) -> None:
        self.config = config
        self.world = world
        self.recorder = RunRecorder(config, display, world.is_coordinator)
        self.watchdog = watchdog
        self.stop_consensus = StopConsensus()
        self.num_rows = len(train.index)
        self.order = Order(self.num_rows, config.optim.batch_size, config.seed)
        epochs = tuple(map(config.epochs_of, range(config.last_round + 1)))
        self.schedule = Schedule(epochs, self.order.steps_per_epoch)
        self.bad_images = BadImages(
            train.index, config.data.bad_images, self.warn_from_rank, left_out=train.left_out
        )
        index = cache_in_memory(train.index, config.data, world, self.bad_images)
        self.encoder = build_encoder(config.encoder, config.seed).to(world.device)
        self.loader = TrainingLoader(
            index, config.data, self.order, world, self.bad_images, self.encoder.precision
        )
        self.evaluator = Evaluator(config, train, test, world, self.bad_images, self.progress_phase)
        side = config.data.image_size
        example_BCHW = torch.rand(2, 3, side, side, device=world.device)
        if config.encoder.compile:
            self.encoder.compile()
        self.network = replicate(self.encoder, world, example_BCHW, config.optim.compression)
        bank = build_bank(config, self.num_rows, world)
        labels_N = train.labels_N if learns_from_labels(config.method) else None
        features_of_shard = partial(
            self.evaluator.train_features, self.encoder, config.encoder.feature_dim
        )
        self.objective = build_objective(
            ObjectiveContext(config, world, bank, labels_N, features_of_shard, self.progress_phase)
        )
        self.state = build_state(config, self.encoder, bank, world, self.objective)
        self.checkpoint_manager = CheckpointManager(
            config, world, self.state, train.index, self.bad_images, self.recorder, watchdog
        )
        self.round_setup = RoundSetup(
            config, world, self.state, self.evaluator, self.recorder, self.progress_phase
        )
        self.profile = StepProfile(config.folder, world, config.run.profile)
        self.rolled_back: list[dict[str, Any]] = []
        self.resume()
        self._last_advance = time.monotonic()

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def display(self) -> Display:
        return self.recorder.display

    def train(self) -> None:
        limit = self.config.run.time_limit_seconds
        self.watchdog.watch(self.config.folder, self.config.run.stall_seconds, limit)
        rank_word = "GPU" if self.world.device.type == "cuda" else "rank"
        watched = self.display.training(
            self.schedule, self._steps_done(), self.config.name, self.world.size, rank_word
        )
        with watched, self.checkpoint_manager:
            while self.progress.round_index <= self.config.last_round:
                try:
                    self.train_round(self.progress.round_index)
                except NonFiniteLoss as found:
                    self.roll_back(found.step)
            if unfinished := self.profile.finish():
                self.display.say(unfinished)
            self.checkpoint_manager.finish(must_succeed=True)

    def train_round(self, round_index: int) -> None:
        """Discovery, then epochs of training, then evaluation."""
        if not self.progress.is_begun:
            self.round_setup.begin_round(round_index)
            self.advance_progress(is_begun=True)
            self.save()
        for epoch in range(self.progress.epochs, self.schedule.epochs[round_index]):
            self.train_epoch(round_index, epoch)
            self.advance_progress(epochs=epoch + 1, step=0)
            self.state.losses.clear()
            self.save()
        self.evaluate_round(round_index)
        self.state.progress = Progress(round_index + 1)

    def train_epoch(self, round_index: int, epoch: int) -> None:
        """From the step on that the run has come to."""
        rate = learning_rate(self.config.optim, epoch)
        set_learning_rate(self.state.optimiser, rate)
        clock, first = StepClock(), self.progress.step
        number = self.schedule.epoch_number(round_index, epoch)
        if self.objective is not None and first == 0:
            self.objective.begin_epoch(number, self.state.optimiser)
        # Without a name for the batches, which would outlive what fails among them.
        for step, batch in enumerate(clock.waiting_for(self.loader.batches(number, first)), first):
            with step_phase("book-keeping"):
                self.watchdog.beat()
                seed_step(self.config.seed, number, step, self.world.rank)
            if [number, step] not in self.state.skipped:
                loss = self.train_step(batch)
                self.state.losses.add(loss, step, self.order.num_images(step))
                clock.count(self.order.num_images(step))
            is_last = step + 1 == self.order.steps_per_epoch
            with step_phase("book-keeping"):
                self.advance_progress(step=step + 1)
                if is_last or (step + 1) % self.config.run.log_every == 0:
                    self.log_step(clock, rate)
                if not is_last:
                    self.handle_stop_request(self.stop_consensus.latest())
            steps = self.order.steps_per_epoch
            if found := self.profile.end_of_step(steps - step - 1, steps):
                self.display.say(found)
        self.synchronise()
        every = self.config.evaluation.every
        is_time = every > 0 and (epoch + 1) % every == 0
        bank = self.state.bank
        knn = self.evaluator.knn_of_bank(self.encoder, bank) if is_time else None
        self.recorder.write(
            "epoch",
            round=round_index,
            epoch=epoch,
            loss=self.state.losses.mean(),
            lr=rate,
            knn_bank=knn,
        )

    def train_step(self, batch: Batch) -> Tensor:
        """Forward, loss, backward, optimiser, memory: the inner loop of Algorithm 1.

        The loss is not a number where a gradient is none.
        """
        with step_phase("encoder, forward"):
            features_BD = self.network(batch.images_BCHW)
        with step_phase("gathering the batch"):
            neighbours_BK = self.state.neighbourhoods.neighbours_NK[batch.rows_B.clamp(min=0)]
            global_batch = gather_global_batch(
                features_BD, batch.rows_B, neighbours_BK, self.world, self._request()
            )
        loss = self.loss(features_BD, global_batch)
        with step_phase("backward"):
            loss.backward()
        with step_phase("optimiser"):
            gradients = [p.grad for p in parameters_of(self.state.optimiser) if p.grad is not None]
            is_finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
            self.state.optimiser.step()
            self.state.optimiser.zero_grad()
        with step_phase("bank"):
            self.state.bank.update(global_batch.rows_G, global_batch.features_GD)
        self.stop_consensus.record(global_batch.requests_G)
        return loss.detach().where(is_finite, torch.nan)

    def loss(self, features_BD: Tensor, global_batch: GlobalBatch) -> Tensor:
        """Of neighbourhoods and instances (Eq. 7), or a competitor's."""
        if self.objective is not None:
            return self.objective.loss(features_BD, global_batch)
        temperature = self.config.objective.temperature
        return sharded_nll(features_BD, global_batch, self.state.bank, self.world, temperature)

    def log_step(self, clock: StepClock, rate: float) -> None:
        """At the loss, now and then: write it down, show it."""
        self.check_finite()
        loss, pace = self.state.losses.recent(), clock.pace()
        if loss is None:
            return
        at = self.progress
        self.recorder.write(
            "step",
            round=at.round_index,
            epoch=at.epochs,
            step=self._steps_done(),
            epochs=round(self._steps_done() / self.schedule.steps_per_epoch, 4),
            loss=loss,
            lr=rate,
            images_per_s=pace.images_per_s,
            data_wait=pace.data_wait,
            memory_mb=memory_mb(self.world.device),
        )

    def handle_stop_request(self, request: int) -> None:
        """What all ranks have agreed on at a step's end."""
        if request == NOTHING:
            return
        self.save()
        if request > SAVE:
            self.checkpoint_manager.finish(must_succeed=True)
            raise Stopped(request, self.checkpoint_manager.describe_last_save())

    def progress_phase(self, what: str) -> AbstractContextManager[Advance]:
        """Around something longer between steps."""
        return stoppable_phase(
            self.display.phase(what), self.watchdog, self.world, self.handle_stop_request
        )

    def advance_progress(self, **changes: Any) -> None:
        """The run has come so far."""
        now = time.monotonic()
        seconds = self.progress.seconds + now - self._last_advance
        self.state.progress = replace(self.progress, seconds=seconds, **changes)
        self._last_advance = now

    def evaluate_round(self, round_index: int) -> None:
        knn_bank, knn = self.evaluator.knn_of_both(self.encoder, self.state.bank)
        self.advance_progress()
        seconds = self.progress.seconds
        anchors = len(self.state.neighbourhoods.anchors_A)
        consistency = self.evaluator.consistency(self.state.neighbourhoods)
        self.recorder.write(
            "round",
            round=round_index,
            anchors=anchors,
            consistency=consistency,
            knn_bank=knn_bank,
            knn=knn,
            seconds=seconds,
        )
        self.display.say(
            f"round {round_index} done: {anchors} anchors, consistency {percent(consistency)}, "
            f"kNN {percent(knn)} (bank {percent(knn_bank)}; {self.evaluator.vote}), "
            f"{format_seconds(seconds)}"
        )

    def save(self) -> None:
        """Begin to write a checkpoint, never one that is not finite."""
        self.check_finite()
        self.synchronise()
        self.bad_images.share(self.world, self.config.folder / "bad_images.txt")
        self.checkpoint_manager.save()
        self.stop_consensus.reset()

    def synchronise(self) -> None:
        """What is not DDP's to keep alike on all ranks."""
        synchronise(self.encoder, self.objective.head if self.objective else None, self.world)

    def check_finite(self) -> None:
        step = self.state.losses.first_bad_step()
        if step is not None:
            raise NonFiniteLoss(step)

    def roll_back(self, step: int) -> None:
        """To the last checkpoint; the batch that did it is left out from now on."""
        at, config = self.progress, self.config.run
        number = self.schedule.epoch_number(at.round_index, at.epochs)
        rows = self.order.global_rows(number, step).tolist()
        record = {"round": at.round_index, "epoch": at.epochs, "step": step, "rows": rows}
        sentence = describe_batch(record, self.recorder.path)
        skipped = [*self.state.skipped, [number, step]]
        if config.non_finite == "stop" or len(skipped) > config.most_roll_backs:
            self.recorder.write("non_finite", **record)
            raise AllRanksError(
                f"{sentence}; the last checkpoint is whole: {self.checkpoint_manager.folder}"
            )
        self.display.say(f"{sentence}; back to the last checkpoint, without them")
        self.rolled_back.append(record)
        if not self.resume():
            raise AllRanksError(f"{sentence}, and there is no checkpoint to go back to")
        reset_powersgd_state(self.network)
        self.state.skipped = skipped
        if self.world.is_coordinator:  # the metrics have gone back too
            known = read_metrics(self.recorder.path, "rolled_back")
            for lost in self.rolled_back:
                if not any(lost.items() <= there.items() for there in known):
                    self.recorder.write("rolled_back", **lost)
        self._last_advance = time.monotonic()

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one."""
        found = self.checkpoint_manager.resume()
        if found is None:
            return False
        again = max(0, found.last_step - self._steps_done())
        lost = f", {again} steps are done again" if again else ""
        self.display.say(f"continuing from {found.checkpoint}{lost}")
        if self.world.is_coordinator:
            record_resume(self.config.folder, found.checkpoint.name, again)
        return True

    def warn_from_rank(self, text: str) -> None:
        """What any rank has to say, not the coordinator alone."""
        print(f"rank {self.world.rank}: {text}", file=sys.stderr, flush=True)

    def _request(self) -> int:
        """What this rank has been asked to do; the coordinator also looks at the clock."""
        request = self.watchdog.request()
        if (
            request == NOTHING
            and self.world.is_coordinator
            and self.checkpoint_manager.is_time_to_save()
        ):
            return SAVE
        return request

    def _steps_done(self) -> int:
        at = self.progress
        return self.schedule.steps_before(at.round_index, at.epochs) + at.step
