"""Define `and-dist train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from and_dist.commands.options import ConfigFiles

if TYPE_CHECKING:
    from and_dist.commands.own_images import Chosen
    from and_dist.runs.console import Display


def train(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images of your own, and key=value, such as optim.lr=0.06.",
            metavar="[IMAGES] [KEY=VALUE]...",
        ),
    ] = None,
    config: ConfigFiles = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing but what goes wrong.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what metrics.jsonl takes, as it comes.")
    ] = False,
) -> None:
    """Train one run, or go on with it: the same command continues what was interrupted."""
    if quiet and as_json:
        raise ValueError("say either --quiet or --json")
    from and_dist.commands.own_images import choose_config, split_source
    from and_dist.distributed.launch_env import is_rank_zero
    from and_dist.runs.console import Bars, Display, Style

    style: Style = "quiet" if quiet else "json" if as_json else "auto"
    display = Display(is_rank_zero(), style)
    source, overrides = split_source(arguments or [])
    with Bars(display.console) as bars:
        chosen = choose_config(config or [], source, overrides, bars)
    _introduce(chosen, display)
    # torch takes seconds to load, and a bad config is refused at once.
    from and_dist.training.recovery import pause_on_disk_errors
    from and_dist.training.session import run_training

    with pause_on_disk_errors():
        run_training(chosen.config, context.obj, style, is_predicted=chosen.proposal is not None)


def _introduce(chosen: Chosen, display: Display) -> None:
    """Say what is about to be loaded, and what is proposed for a user's own images."""
    config = chosen.config
    if chosen.proposal is None or chosen.found is None:
        display.say(f"{config.name}: loading {config.data.train}")
        return
    display.say(chosen.found.describe())
    display.say("proposed for them (`and-dist init` writes it down, key=value changes it):")
    from and_dist.planning.proposal import as_yaml_value

    for key, reason in chosen.proposal.reasons.items():
        value = f"{key}={as_yaml_value(chosen.proposal.values[key])}"
        display.say(f"  {value:<34} {reason}")
