"""Build the state of a run without images, for benchmarks of what a checkpoint holds."""

from __future__ import annotations

from typing import NoReturn

from and_dist.config.schema import Config
from and_dist.distributed.world import World
from and_dist.models.encoders import build_encoder
from and_dist.objectives.base import ObjectiveContext, build_objective
from and_dist.runs.console import Display
from and_dist.training.state import RunState, build_bank, build_state


def build_untrained_state(config: Config, rows: int, world: World) -> RunState:
    """Return the state of a run over so many images before its first step."""
    encoder, bank = build_encoder(config.encoder, config.seed), build_bank(config, rows, world)
    phase = Display(is_shown=False).phase
    context = ObjectiveContext(config, world, bank, None, _no_images, phase)
    return build_state(config.optim, encoder, bank, build_objective(context))


def _no_images() -> NoReturn:
    """Refuse to compute features of images that are not there."""
    raise AssertionError("a state without images has no features to compute")
