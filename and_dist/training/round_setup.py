"""Start a round: let the objective begin it, or in round 0 initialise the bank and evaluate the
kNN baselines."""

from __future__ import annotations

import time

from and_dist.config.schema import MOST_PIXEL_BYTES, Config
from and_dist.distributed.world import World
from and_dist.evaluation.neighbourhood_stats import in_one_line
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.runs.run_recorder import RunRecorder
from and_dist.training.components import Components
from and_dist.training.first_weights import load_first_weights
from and_dist.training.published import take_up


class RoundSetup:
    """Starts the rounds of one run on one rank; changes the run's state and records what it did."""

    def __init__(
        self, config: Config, world: World, components: Components, recorder: RunRecorder
    ) -> None:
        """Keep what a round is started with."""
        self._config = config
        self._world = world
        self._state = components.state
        self._evaluator = components.evaluator
        self._recorder = recorder
        self._is_undrawn = False
        """Whether a picture of neighbourhoods has failed, and that has been said."""

    def begin_round(self, round_index: int) -> None:
        """Begin a round: the first one begins the run."""
        if round_index == 0:
            self.begin_run()
            return
        before, started = self._state.neighbourhoods, time.monotonic()
        self._state.objective.begin_round(round_index)
        if self._state.neighbourhoods is not before and self._world.is_coordinator:
            self._record_discovery(round_index, before, time.monotonic() - started)

    def begin_run(self) -> None:
        """Load given weights, fill the first bank by a pass over all images, evaluate baselines."""
        display, encoder = self._recorder.display, self._state.encoder
        display.place, say = "before training", display.say
        if self._config.encoder.weights:
            say(load_first_weights(encoder, self._config))
        if self._config.bank.init == "features":
            dim = self._config.encoder.feature_dim
            features_SD = self._evaluator.train_features(encoder, dim)
            self._state.bank.features_SD.copy_(features_SD)
            self._state.bank.round_again()
        if self._config.evaluation.baselines:
            gigabytes = self._evaluator.pixel_bytes / 1e9
            if self._evaluator.pixel_bytes > MOST_PIXEL_BYTES:
                say(f"no kNN of raw pixels: they take {gigabytes:.1f} GB a rank")
            self._recorder.write("baselines", **self._evaluator.baselines(encoder))

    def take_up_published(self) -> None:
        """Begin the run where the published code has left one."""
        self.begin_run()
        before = self._state.neighbourhoods
        self._recorder.display.say(take_up(self._state, self._config))
        if self._state.neighbourhoods is not before and self._world.is_coordinator:
            self._record_discovery(self._state.progress.round_index, before, 0.0)

    def _record_discovery(self, round_index: int, before: Neighbourhoods, seconds: float) -> None:
        """Record what a discovery found, compared with the anchors of the round before."""
        found = self._state.neighbourhoods
        figures = self._evaluator.describe(found, before.anchors_A)
        if self._recorder.shows_pictures:
            self._draw_neighbourhoods(round_index)
        self._recorder.write("discovery", round=round_index, seconds=seconds, **figures)
        self._recorder.display.say(in_one_line(round_index, figures, seconds))

    def _draw_neighbourhoods(self, round_index: int) -> None:
        """Draw the neighbourhoods of a round, which the trackers show with its figures."""
        try:
            self._evaluator.draw_neighbourhoods(self._state.neighbourhoods, round_index)
        except Exception as error:  # no picture is worth a run
            if not self._is_undrawn:
                where = f"no picture of the neighbourhoods of round {round_index}"
                self._recorder.display.say(f"{where}: {type(error).__name__}: {error}")
            self._is_undrawn = True
