"""Choose a config for `and-dist train` and `and-dist init`, where a user names images alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from and_dist.config.load import load_config, load_run_config, parse_overrides
from and_dist.config.schema import Config, RunConfig
from and_dist.config.validation import flatten
from and_dist.utils.progress import Reporter

if TYPE_CHECKING:
    from and_dist.data.survey import Survey
    from and_dist.planning.proposal import Proposal

NOTHING_TO_TRAIN = """say what to train on:
  and-dist train FOLDER             your own images; `and-dist init FOLDER` shows the config
  and-dist train --config demo      drawn shapes, four minutes on a CPU
  and-dist train --config mine.yaml your own config; `and-dist config` lists its keys"""


LOOKED_AT = (
    "name",
    "method",
    "data.image_size",
    "data.limit",
    "curriculum.rounds",
    "curriculum.epochs",
    "run.root",
    "run.device",
)
"""The keys whose values a proposal depends on."""


@dataclass(frozen=True)
class Chosen:
    """Hold a config, and what was found and proposed if it was."""

    config: Config
    found: Survey | None = None
    proposal: Proposal | None = None


def split_source(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return (images, overrides) of the arguments, of which the first may name images.

    Raise ValueError for another argument without an equals sign.
    """
    given = list(arguments)
    source = given.pop(0) if given and "=" not in given[0] else None
    for argument in given:
        if "=" not in argument:
            raise ValueError(
                f"{argument!r} is neither key=value nor the first argument, which names the images"
            )
    if source is not None and not Path(source).exists() and not source.startswith("shapes/"):
        raise ValueError(f"{source}: there is no such folder, and it is not of the form key=value")
    return source, given


def choose_config(
    files: Sequence[Path], source: str | None, overrides: Sequence[str], reporter: Reporter
) -> Chosen:
    """Return the config of a run.

    Without a file it is proposed for the images that are named, unless the run has begun: then it
    is the run's own. Raise ValueError if there are neither.
    """
    given = flatten(parse_overrides(overrides))
    if source is not None and "data.train" in given:
        raise ValueError(
            f"{source} and data.train={given['data.train']}: give the one or the other"
        )
    if source is not None and files:
        return Chosen(load_config(files, [f"data.train={source}", *overrides]))
    if files:
        return Chosen(load_config(files, overrides))
    # Before a proposal makes use of them, these values have to be ones that a config can have.
    load_config([], [text for text in overrides if text.partition("=")[0] in LOOKED_AT])
    from and_dist.data.survey import find_splits

    source = source or given.get("data.train")
    root = given.get("run.root")
    root = root if isinstance(root, str) else RunConfig().root  # a wrong one is refused below
    run = Path(root) / _name_of_run(given, source)
    if os.path.isfile(run / "config.yaml"):
        same = [f"data.train={find_splits(source)[0]}"] if isinstance(source, str) else []
        return Chosen(load_run_config(run, [*overrides, *same]))
    if not isinstance(source, str):
        raise ValueError(NOTHING_TO_TRAIN)
    return propose_config(source, given, overrides, reporter)


def propose_config(
    source: str, given: dict[str, Any], overrides: Sequence[str], reporter: Reporter
) -> Chosen:
    """Return the config that is proposed for images, under a user's overrides."""
    from and_dist.data.survey import survey
    from and_dist.planning.proposal import has_gpu, propose

    load_config([], overrides)  # raises ValueError for a wrong value before it is looked at
    found = survey(source, given.get("data.limit"), reporter)
    is_on_gpu = has_gpu(str(given.get("run.device", RunConfig().device)))
    proposal = propose(found, is_on_gpu, {k: v for k, v in given.items() if k != "data.train"})
    # data.train itself would take data.test away, which the proposal names.
    others = [text for text in overrides if text.partition("=")[0] != "data.train"]
    return Chosen(load_config([], others, proposal.layer), found, proposal)


def _name_of_run(given: dict[str, Any], source: object) -> str:
    """Return the name of a run that is given, or else that of its images."""
    from and_dist.planning.proposal import name_of_source

    if isinstance(named := given.get("name"), str):
        return named
    return name_of_source(source) if isinstance(source, str) else Config().name
