"""Propose a config for somebody's own images, from what a survey of them finds. No torch.

The values are a starting point that is worth looking at, not the best there is: the whole run is
to end within an hour on one GPU and within half an hour on a CPU.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from and_dist.config.schema import Config
from and_dist.config.validation import flatten, unflatten
from and_dist.data.survey import Survey
from and_dist.distributed.launch_env import count_gpus

ROUNDS = 4
FEWEST_FOR_HOLDOUT = 100
"""The fewest labelled images of which a tenth is held out."""
SHARE_OF_MEMORY = 0.25
"""The largest share of a machine's memory for decoded images."""


@dataclass(frozen=True)
class Scale:
    """Hold what is proposed for images of some size on some device."""

    encoder: str
    image_size: int
    batch_size: int
    lr: float
    visits: int
    """The number of images that a run looks at, over all epochs, unless that is too few epochs."""


@dataclass(frozen=True)
class Proposal:
    """Hold proposed values by key, with dots, and the reason for each."""

    values: dict[str, Any]
    reasons: dict[str, str]

    @property
    def layer(self) -> dict[str, Any]:
        """Return the values as a config file holds them."""
        return unflatten(self.values)


def has_gpu(asked: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a run would train on a GPU, without loading torch."""
    return asked == "cuda" if asked != "auto" else count_gpus(environ) > 0


def scale_for(found: Survey, is_on_gpu: bool) -> Scale:
    """Return encoder, size and length for images of a size."""
    side = max(8, found.shorter // 4 * 4)
    if not is_on_gpu:
        return Scale("small", min(side, 32), 64, 0.06, 400_000)
    if found.shorter <= 48:
        return Scale("cifar_resnet18", min(side, 32), 128, 0.03, 20_000_000)
    if found.shorter <= 112:
        return Scale("cifar_resnet18", 64, 128, 0.03, 8_000_000)
    return Scale("resnet18", 224, 256, 0.03, 4_000_000)


def propose(
    found: Survey, is_on_gpu: bool, given: Mapping[str, Any], memory_gb: float | None = None
) -> Proposal:
    """Return a proposal for the images of a survey, with what a user has `given` by key in it.

    `memory_gb` is the memory of this machine, if it is not to be looked up.
    """
    scale = scale_for(found, is_on_gpu)
    rows = found.num_images
    # A step of more than an eighth of all images would leave too few steps to learn from.
    batch = min(scale.batch_size, max(8, 2 ** int(math.log2(max(1, rows / 8)))))
    size = int(given.get("data.image_size", scale.image_size))
    rounds = int(given.get("curriculum.rounds", ROUNDS))
    epochs = max(4, min(200, round(scale.visits / (rounds + 1) / rows)))
    epochs = int(given.get("curriculum.epochs", epochs))
    values: dict[str, tuple[Any, str]] = {
        "name": (name_for(found), "the run's folder is runs/NAME"),
        "data.train": (found.train, found.describe().partition(": ")[2]),
        "data.test": (found.test, _why_tested(found)),
        "data.image_size": (size, "side in pixels that the encoder sees; more is slower"),
        "data.flip": (True, "false where left and right differ, as in writing"),
        "data.bad_images": ("skip", "a file that cannot be read is left out and listed"),
        "encoder.name": (scale.encoder, "larger: cifar_resnet18, resnet18, resnet50"),
        "curriculum.rounds": (rounds, "discoveries of neighbours, after round 0"),
        "curriculum.epochs": (epochs, "passes over the images in every round"),
        "optim.batch_size": (batch, "images of a step, over all workers"),
        "optim.lr": (scale.lr * batch / scale.batch_size, "grows with the batch"),
        "optim.milestones": (
            sorted({max(1, round(0.6 * epochs)), max(1, round(0.8 * epochs))}),
            "epochs of a round after which lr falls to a tenth",
        ),
    }
    if found.class_names:
        values["evaluation.knn"] = (_votes(found), "neighbours that vote on a class")
    if not is_on_gpu or size <= 64:
        values["data.crop_area"] = ([0.4, 1.0], "a small network learns more from large crops")
    if found.class_names and found.test is None and rows >= FEWEST_FOR_HOLDOUT:
        values["data.holdout"] = (0.1, "share that is tested with instead of trained on; 0 is none")
    if found.test is not None or size > 64:
        values["data.test_resize"] = (
            size * 8 // 7 if size > 64 else None,
            "shorter side of test images before their centre is cut out",
        )
    if given.get("encoder.weights") and given.get("optim.name", "adamw") == "adamw":
        values["optim.name"] = ("adamw", "even steps for all layers")
        values["optim.lr"] = (1e-4, "larger steps undo what the weights have learned")
    values |= _cache(found, size, memory_gb)
    values |= {key: (value, "as given") for key, value in given.items()}
    order = flatten(Config().model_dump(mode="json"))
    ordered = {key: values[key] for key in [*order, *values] if key in values}
    return Proposal(
        {key: value for key, (value, _) in ordered.items()},
        {key: reason for key, (_, reason) in ordered.items()},
    )


def name_for(found: Survey) -> str:
    """Return a run's name from that of the folder."""
    return name_of_source(found.train)


def name_of_source(source: str) -> str:
    """Return a run's name from the folder of its images; that of the folder above for train/."""
    path = Path(source).absolute()
    while path.name in ("train", "images", "data") and path.parent.name:
        path = path.parent
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-._") or "own"


def _why_tested(found: Survey) -> str:
    """Say what is tested with."""
    if found.test is not None:
        return "the images beside them"
    return (
        "no folder of test images lies beside them" if found.class_names else "they have no labels"
    )


def _votes(found: Survey) -> int:
    """Return K: less than the images of a class, and at most the paper's 200."""
    return max(5, min(200, found.num_images // (2 * len(found.class_names))))


def _cache(found: Survey, size: int, memory_gb: float | None) -> dict[str, tuple[Any, str]]:
    """Return keys that keep decoded images in memory, where decoding takes most of the time."""
    side = 2 * size
    if not found.is_encoded or found.shorter < 2 * side:
        return {}
    longer = side * max(found.height, found.width) / found.shorter
    needed = 3 * side * longer * found.num_images / 1e9
    memory_gb = memory_of_machine() if memory_gb is None else memory_gb
    # Images differ in shape from the median one.
    wanted = math.ceil(15 * needed) / 10
    if wanted > SHARE_OF_MEMORY * memory_gb:
        return {}
    return {
        "data.cache_gb": (wanted, "gigabytes of memory for decoded images: these are large"),
        "data.cache_side": (side, "shorter side of the images in memory"),
    }


def memory_of_machine() -> float:
    """Return the memory of this machine in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def as_yaml(proposal: Proposal, found: Survey) -> str:
    """Return a proposal as a config file, each key with its reason."""
    lines = [f"# {found.describe()}"]
    sections: dict[str, list[str]] = {}
    for key, reason in proposal.reasons.items():
        section, _, name = key.rpartition(".")
        text = f"{name}: {as_yaml_value(proposal.values[key])}"
        indent = "  " if section else ""
        sections.setdefault(section, []).append(f"{indent}{text:<{32 - len(indent)}}  # {reason}")
    for section, keys in sections.items():
        lines += [*([f"{section}:"] if section else []), *keys]
    return "\n".join(lines) + "\n"


def as_yaml_value(value: object) -> str:
    """Return a value as it stands in a config file, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
