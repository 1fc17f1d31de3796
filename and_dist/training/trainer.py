"""Train by Algorithm 1 of the paper: train() -> train_round() -> train_epoch() -> train_step().

B local batch, G global batch, K neighbours, D feature.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from and_dist.config.schema import Config
from and_dist.data.index import LabelledImages
from and_dist.data.loader import Batch
from and_dist.distributed.collectives import raise_on_all_ranks
from and_dist.distributed.ddp import seed_step, synchronise, without_reduction
from and_dist.distributed.stop_consensus import StopConsensus, stoppable_phase
from and_dist.distributed.watchdog import NOTHING, SAVE, Stopped, Watchdog
from and_dist.distributed.world import World
from and_dist.evaluation.bank_figures import BANK_FIGURES, describe_collapse
from and_dist.evaluation.neighbourhood_stats import describe_round
from and_dist.method.loss import GlobalBatch, gather_global_batch
from and_dist.models.arithmetic import training_products
from and_dist.models.learning_rate import Place, learning_rate_at
from and_dist.models.optim import clip_gradients, parameters_of, set_learning_rate
from and_dist.runs.console import Display
from and_dist.runs.run_recorder import RunRecorder
from and_dist.training.accumulation import BatchPart, cut, join
from and_dist.training.checkpointing import CheckpointManager
from and_dist.training.choices import choose_settings
from and_dist.training.components import RunImages, build_components
from and_dist.training.meters import StepClock, memory_mb
from and_dist.training.profiling import StepProfile
from and_dist.training.recovery import NonFiniteLoss, Recovery, print_traceback_on_error
from and_dist.training.round_setup import RoundSetup
from and_dist.training.state import Progress
from and_dist.utils.progress import Advance
from and_dist.utils.step_phases import step_phase

log = logging.getLogger(__name__)


class Trainer:
    """Trains one run on one rank."""

    def __init__(
        self,
        config: Config,
        world: World,
        train: LabelledImages,
        test: LabelledImages | None,
        display: Display,
        watchdog: Watchdog,
    ) -> None:
        """Build everything a checkpoint fills, with all ranks; read and write nothing yet."""
        self.config = config = choose_settings(config, len(train.index), world).config
        self.world = world
        self.watchdog = watchdog
        self.stop_consensus = StopConsensus()
        with raise_on_all_ranks(world, "opening the metrics"):
            self.recorder = RunRecorder(config, display, world.is_coordinator)
        images = RunImages(train, test)
        self.components = build_components(
            config, world, images, self.progress_phase, self.warn_from_rank
        )
        self.state = self.components.state
        self.checkpoint_manager = CheckpointManager(
            config, world, self.components, self.recorder, watchdog
        )
        self.round_setup = RoundSetup(config, world, self.components, self.recorder)
        self.recovery = Recovery(
            config.run, world, self.components, self.checkpoint_manager, self.recorder
        )
        self.profile = StepProfile(config.folder, world, config.run.profile)
        self._clock = StepClock(self.world.device)
        self._noted: Progress | None = None
        """The progress when note_step() was called, until log_step() has written it."""
        self._last_advance = time.monotonic()

    @property
    def progress(self) -> Progress:
        """Return how far the run has come."""
        return self.state.progress

    @property
    def display(self) -> Display:
        """Return the console, which is silent on all ranks but the coordinator."""
        return self.recorder.display

    def train(self) -> None:
        """Resume from the newest checkpoint, if there is one, and train to the end."""
        is_resumed = self.recovery.resume()
        with print_traceback_on_error():
            if not is_resumed and self.config.bank.weights:
                self.round_setup.take_up_published()
            self._train_rounds()

    def _train_rounds(self) -> None:
        """Train the rounds that are left."""
        run = self.config.run
        self.watchdog.watch(self.config.folder, run.stall_seconds, run.time_limit_seconds)
        rank_word = "GPU" if self.world.device.type == "cuda" else "rank"
        shown = self.display.training(
            self.components.schedule,
            self._steps_done(),
            self.config.name,
            self.world.size,
            rank_word,
        )
        self._last_advance = time.monotonic()
        with shown, self.checkpoint_manager:
            while self.progress.round_index <= self.config.last_round:
                try:
                    self.train_round(self.progress.round_index)
                except NonFiniteLoss as found:
                    self.recovery.roll_back(found.step)
                    self._last_advance = time.monotonic()
            if unfinished := self.profile.finish():
                self.display.say(unfinished)
            self.checkpoint_manager.finish(must_succeed=True)
            self.checkpoint_manager.flush_metrics()

    def train_round(self, round_index: int) -> None:
        """Begin a round (discovery), train its epochs, evaluate it."""
        self.display.place = self.components.schedule.round_of(round_index)
        if not self.progress.is_begun:
            self.round_setup.begin_round(round_index)
            self.advance_progress(is_begun=True)
        self.save()  # nothing, where the run has resumed from this very place
        for epoch in range(self.progress.epochs, self.components.schedule.epochs[round_index]):
            self.train_epoch(round_index, epoch)
            self.advance_progress(epochs=epoch + 1, step=0)
            self.state.losses.clear()
            self.save()
        self.evaluate_round(round_index)
        self.state.progress = Progress(round_index + 1)

    def train_epoch(self, round_index: int, epoch: int) -> None:
        """Train an epoch, from the step on that the run has come to."""
        number, first = self._epoch_number(), self.progress.step
        if first == 0:
            self.state.objective.begin_epoch(number, self.state.optimiser)
        self._clock = StepClock(self.world.device)
        # The batches have no name: a name would outlive a failure and keep the pipeline alive.
        for step, batch in enumerate(
            self._clock.waiting_for(self.components.loader.batches(number, first)), first
        ):
            if [number, step] not in self.state.skipped:
                num_images = self.components.order.num_images(step)
                seed_step(self.world, self.config.seed, number, step)
                set_learning_rate(self.state.optimiser, self.learning_rate(epoch, step))
                self.state.losses.add(self.train_step(batch), step, num_images)
                self._clock.count(num_images)
            self.after_step(step)
        self.finish_epoch(round_index, epoch)

    def train_step(self, batch: Batch) -> Tensor:
        """Run the inner loop of Algorithm 1: forward, loss, backward, optimiser, memory bank.

        Return the loss, which is NaN where a gradient is not finite.
        """
        optim, network = self.config.optim, self.components.network
        parts = cut(batch, optim.accumulate, self.world)
        losses, batches = [], []
        for at, part in enumerate(parts, 1):
            with nullcontext() if at == len(parts) else without_reduction(network):
                loss, gathered = self._train_part(part)
            losses.append(loss)
            batches.append(gathered)
        with step_phase("optimiser"):
            gradients = [p.grad for p in parameters_of(self.state.optimiser) if p.grad is not None]
            # One check on the device for all gradients; the host looks at it only when it logs.
            norms = torch._foreach_norm(gradients)
            is_finite = torch.stack(norms).isfinite().all()
            if optim.clip_norm is not None:
                clip_gradients(gradients, norms, optim.clip_norm)
            self.state.optimiser.step()
            self.state.optimiser.zero_grad()
        with step_phase("bank"):
            global_batch = join(batches)
            self.state.bank.update(global_batch.rows_G, global_batch.features_GD)
        self.stop_consensus.record(global_batch.requests_G)
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return total.where(is_finite, torch.nan)

    def _train_part(self, part: BatchPart) -> tuple[Tensor, GlobalBatch]:
        """Add the gradients of a part of a batch; return its share of the loss, and its queries."""
        with step_phase("encoder, forward"), training_products(self.config.encoder.tf32):
            features_BD = self.components.network(part.images_BCHW)
        with step_phase("gathering the batch"):
            neighbours_BK = self.state.neighbourhoods.neighbours_NK[part.rows_B.clamp(min=0)]
            global_batch = gather_global_batch(
                features_BD, part.rows_B, neighbours_BK, self.world, self._request()
            )
        loss = self.state.objective.loss(features_BD, global_batch)
        if part.share is not None:
            loss = loss * part.share
        with step_phase("backward"), training_products(self.config.encoder.tf32):
            loss.backward()
        return loss.detach(), global_batch

    def after_step(self, step: int) -> None:
        """Do the bookkeeping of a step: heartbeat, progress, log, stop request, profile."""
        steps = self.components.order.steps_per_epoch
        is_last = step + 1 == steps
        with step_phase("book-keeping"):
            self.watchdog.beat()
            self.advance_progress(step=step + 1)
            self.log_step()
            if is_last or (step + 1) % self.config.run.log_every == 0:
                self.note_step()
            if is_last:
                self.log_step()
            if not is_last:
                self.handle_stop_request(self.stop_consensus.latest())
        if found := self.profile.end_of_step(steps - step - 1, steps):
            self.display.say(found)

    def finish_epoch(self, round_index: int, epoch: int) -> None:
        """Record an epoch, with figures of the bank as often as the config asks for them."""
        self.synchronise()
        every = self.config.evaluation.every
        is_time = every > 0 and (epoch + 1) % every == 0
        evaluator, state = self.components.evaluator, self.state
        unknown = dict.fromkeys(BANK_FIGURES)
        figures = evaluator.judge_bank(state.encoder, state.bank) if is_time else unknown
        self.recorder.write(
            "epoch",
            round=round_index,
            epoch=epoch,
            loss=state.losses.mean(),
            lr=self.learning_rate(epoch, self.components.order.steps_per_epoch - 1),
            **figures,
        )
        self.warn_of_collapse(figures)

    def note_step(self) -> None:
        """Ask the device for what log_step() will write, every `log_every` steps."""
        self.state.losses.send()
        self._clock.lap()
        self._noted = self.progress

    def log_step(self) -> None:
        """Log loss, learning rate and throughput of the step that was noted, if any was.

        Meanwhile the next step was launched, so the device has work while the host waits.
        """
        at, self._noted = self._noted, None
        if at is None:
            return
        self._raise_if_bad(self.state.losses.sent_bad_step())
        loss, pace = self.state.losses.recent(), self._clock.pace()
        if loss is None:
            return
        schedule = self.components.schedule
        steps_done = schedule.steps_done(*at.place)
        self.recorder.write(
            "step",
            round=at.round_index,
            epoch=at.epochs,
            step=steps_done,
            epochs=round(steps_done / schedule.steps_per_epoch, 4),
            loss=loss,
            lr=self.learning_rate(at.epochs, at.step - 1),
            images_per_s=pace.images_per_s,
            data_wait=pace.data_wait,
            memory_mb=memory_mb(self.world.device),
        )

    def evaluate_round(self, round_index: int) -> None:
        """Evaluate the encoder at the end of a round, record and show the figures."""
        evaluator, table = self.components.evaluator, self.state.neighbourhoods
        figures = evaluator.judge_both(self.state.encoder, self.state.bank)
        self.advance_progress()
        record = {
            "round": round_index,
            "anchors": len(table.anchors_A),
            "consistency": evaluator.consistency(table),
            **figures,
            "seconds": self.progress.seconds,
        }
        self.recorder.write("round", **record)
        if self.world.is_coordinator:
            self.recorder.write_goodput()
        self.display.say(describe_round(record, evaluator.vote))
        self.warn_of_collapse(figures)

    def warn_of_collapse(self, figures: Mapping[str, float | None]) -> None:
        """Say what to try where the signs tell that all images get the same feature."""
        if found := describe_collapse(figures, self.config.encoder.feature_dim):
            self.display.say(found)

    def handle_stop_request(self, request: int) -> None:
        """Save, and stop, as all ranks have agreed on at the end of a step."""
        if request == NOTHING:
            return
        self.save()
        if request > SAVE:
            self.checkpoint_manager.finish(must_succeed=True)
            raise Stopped(request, self.checkpoint_manager.describe_last_save())

    def progress_phase(self, what: str) -> AbstractContextManager[Advance]:
        """Show the progress of longer work between steps, in which the run can be stopped."""
        shown = self.display.phase(what)
        return stoppable_phase(shown, self.watchdog, self.world, self.handle_stop_request)

    def advance_progress(self, **changes: Any) -> None:
        """Note how far the run has come, and the time since the last call."""
        now = time.monotonic()
        seconds = self.progress.seconds + now - self._last_advance
        self.state.progress = replace(self.progress, seconds=seconds, **changes)
        self._last_advance = now

    def save(self) -> None:
        """Start writing a checkpoint, never one that is not finite; all before it is logged."""
        self.log_step()
        self._raise_if_bad(self.state.losses.first_bad_step())
        self.synchronise()
        self.components.bad_images.share(self.world, self.config.folder / "bad_images.txt")
        self.checkpoint_manager.save()
        self.stop_consensus.reset()

    def synchronise(self) -> None:
        """Make equal on all ranks what DDP does not keep equal."""
        synchronise(self.state.encoder, self.state.objective.head, self.world)

    def _raise_if_bad(self, step: int | None) -> None:
        """Raise NonFiniteLoss if there is a step whose loss or gradient was NaN."""
        if step is not None:
            raise NonFiniteLoss(step)

    def warn_from_rank(self, text: str) -> None:
        """Log a warning of this rank, whichever it is."""
        whose = f"rank {self.world.rank}: " if self.world.size > 1 else ""
        log.warning("%s%s", whose, text)

    def learning_rate(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step of the round under way."""
        schedule, round_index = self.components.schedule, self.progress.round_index
        if self.config.optim.span == "run":
            steps = schedule.steps_done(round_index, epoch, step), schedule.total_steps
        else:
            steps = schedule.steps_per_epoch * epoch + step, schedule.steps_of_round(round_index)
        return learning_rate_at(self.config.optim, Place(*steps, schedule.steps_per_epoch))

    def _request(self) -> int:
        """Return what this rank was asked to do; the coordinator also asks when a save is due."""
        request = self.watchdog.request()
        is_asking = request == NOTHING and self.world.is_coordinator
        return SAVE if is_asking and self.checkpoint_manager.is_time_to_save() else request

    def _epoch_number(self) -> int:
        """Return the number of the epoch under way, counted over all rounds."""
        at = self.progress
        return self.components.schedule.epoch_number(at.round_index, at.epochs)

    def _steps_done(self) -> int:
        """Return the number of steps done, counted over all rounds."""
        return self.components.schedule.steps_done(*self.progress.place)
