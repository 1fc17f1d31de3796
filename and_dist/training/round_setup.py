"""What a round begins with: discovery, or in round 0 the first bank and what there is to beat."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from and_dist.config.schema import MOST_PIXEL_BYTES, Config
from and_dist.distributed.world import World
from and_dist.evaluation.evaluator import Evaluator
from and_dist.evaluation.neighbourhood_stats import in_one_line
from and_dist.method.discovery import SearchOptions, discover
from and_dist.method.neighbour_table import Neighbourhoods
from and_dist.models.pretrained import load_weights
from and_dist.runs.run_recorder import RunRecorder
from and_dist.training.state import RunState
from and_dist.utils.progress import Advance


class RoundSetup:
    """Of one run on one rank; it changes the run's state and writes in its journal."""

    def __init__(
        self,
        config: Config,
        world: World,
        state: RunState,
        evaluator: Evaluator,
        recorder: RunRecorder,
        phase: Callable[[str], AbstractContextManager[Advance]],
    ) -> None:
        self.config = config
        self.world = world
        self.state = state
        self.evaluator = evaluator
        self.recorder = recorder
        self.phase = phase

    def begin_round(self, round_index: int) -> None:
        """Anchors and their neighbours; round 0 and instance learning have none."""
        if round_index == 0:
            self.begin_run()
        elif self.config.method == "and":
            self.state.neighbourhoods = self.discover(round_index)

    def begin_run(self) -> None:
        """Weights from a file, the first bank by a pass over all images, what there is to beat."""
        encoder, say = self.state.encoder, self.recorder.display.say
        if self.config.encoder.weights:
            say(load_weights(encoder, Path(self.config.encoder.weights)))
        if self.config.bank.init == "features":
            self.state.bank.features_SD.copy_(self.features_of_shard())
        if self.config.evaluation.baselines:
            gigabytes = self.evaluator.pixel_bytes / 1e9
            if self.evaluator.pixel_bytes > MOST_PIXEL_BYTES:
                say(f"no kNN of raw pixels: they take {gigabytes:.3g} GB a rank")
            self.recorder.write("baselines", **self.evaluator.baselines(encoder))

    def discover(self, round_index: int) -> Neighbourhoods:
        config, started = self.config, time.monotonic()
        with self.phase(f"discovery of round {round_index}") as advance:
            found = discover(
                self.state.bank,
                self.world,
                round_index,
                config.curriculum.rounds,
                config.curriculum.neighbours,
                config.objective.temperature,
                config.discovery.search,
                options=SearchOptions(config.discovery.recall, config.discovery.memory_bytes),
                progress=advance,
            )
        if self.world.is_coordinator:
            seconds = time.monotonic() - started
            figures = self.evaluator.describe(found, self.state.neighbourhoods.anchors_A)
            self.recorder.write("discovery", round=round_index, seconds=seconds, **figures)
            self.recorder.display.say(in_one_line(round_index, figures, seconds))
        return found

    def features_of_shard(self) -> Tensor:
        """[S, D] of this rank's rows, by the network as it is and the test transform."""
        return self.evaluator.train_features(self.state.encoder, self.config.encoder.feature_dim)
