"""Config: all that a run is asked for, typed, frozen, and strict about what it is given.

Values are layered: field defaults < `preset` < the YAML files from left to right < `key=value`; a
YAML file lies over the files its own `base` names.
This module reaches no torch, so a login node can check a config without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from and_dist.config.paper_figures import FIGURES
from and_dist.config.schema import (
    BankConfig,
    CurriculumConfig,
    DataConfig,
    DeepClusterConfig,
    DiscoveryConfig,
    EncoderConfig,
    EvaluationConfig,
    InstanceNceConfig,
    ObjectiveConfig,
    RunConfig,
    TrainingOptimConfig,
)
from and_dist.config.validation import Section, build, flatten
from and_dist.config.yaml_files import merge, parse_override, read_layers

OWN_METHODS = ("and", "instance", "random")
PEERS = {
    "supervised": "supervised:Supervised",
    "instance_nce": "instance_nce:InstanceNce",
    "deepcluster": "deepcluster:DeepCluster",
    "nat": "nat:Nat",
}
"""Methods to compare with -> the module of and_dist.objectives.registry and its Peer."""


class Config(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run and of its folder."""
    preset: Literal["code", "paper"] = "code"
    """Where paper and published code differ: which one sets the defaults (see PRESETS)."""
    method: str = "and"
    """and discovers neighbourhoods between rounds; instance keeps every row an instance; random
    trains nothing; or one of PEERS."""
    paper: tuple[str, ...] = ()
    """Figures of the paper that this run is to reach, such as table 4/ResNet18."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the bank, the order and the augmentation."""
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    bank: BankConfig = BankConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    instance_nce: InstanceNceConfig = InstanceNceConfig()
    deepcluster: DeepClusterConfig = DeepClusterConfig()
    optim: TrainingOptimConfig = TrainingOptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()

    @property
    def folder(self) -> Path:
        return Path(self.run.root) / self.name

    @property
    def last_round(self) -> int:
        return 0 if self.method == "random" else self.curriculum.rounds

    @property
    def num_epochs(self) -> int:
        return sum(self.epochs_of(r) for r in range(self.last_round + 1))

    def epochs_of(self, round_index: int) -> int:
        is_untrained = round_index == 0 and self.curriculum.start == "random"
        return 0 if is_untrained or self.method == "random" else self.curriculum.epochs

    @pydantic.field_validator("method")
    @classmethod
    def check_method(cls, method: str) -> str:
        if method not in (*OWN_METHODS, *PEERS):
            known = ", ".join((*OWN_METHODS, *PEERS))
            raise ValueError(f"method = {method!r} is not one of: {known}")
        return method

    @pydantic.field_validator("paper")
    @classmethod
    def check_paper(cls, paper: tuple[str, ...]) -> tuple[str, ...]:
        for name in paper:
            if name not in FIGURES:
                raise ValueError(
                    f"paper: {name!r} is none of the paper's figures, which are named like "
                    f"{', '.join(list(FIGURES)[::20])} (all in and_dist/config/paper_figures.py)"
                )
        return paper

    @pydantic.model_validator(mode="after")
    def check_rounds(self) -> Config:
        if self.method == "and" and self.curriculum.rounds == 0:
            raise ValueError("curriculum.rounds = 0 discovers nothing: that is method=instance")
        return self

    @pydantic.model_validator(mode="after")
    def check_start(self) -> Config:
        first = {"curriculum.start=random": self.curriculum.start, "method=random": self.method}
        for key, value in first.items():
            if value == "random" and self.bank.init != "features":
                raise ValueError(
                    f"{key} looks at the first rows of the bank: it needs bank.init=features"
                )
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "code": {
        "bank": {"renormalise": True},
        "optim": {"milestones": [120, 160]},
        "evaluation": {"knn_temperature": 0.1},
    },
    "paper": {
        "bank": {"renormalise": False},
        "optim": {"milestones": [80, 120, 160]},
        "evaluation": {"knn_temperature": 0.07},
    },
}

FREE_OF_IDENTITY = ("name", "run", "evaluation", "paper")
"""Sections a resumed run may change: they do not touch what is trained."""


OF_NO_RESULT = (
    "name",
    "seed",
    "run.",
    "data.cache_gb",
    "data.hardware_decoder",
    "data.bad_images",
    "discovery.memory_mb",
    "optim.fused",
    "encoder.channels_last",
    "encoder.compile",
)
"""Keys, or sections, in which two runs of one experiment may differ: they change how fast it runs,
or the seed."""
PATHS = ("data.train", "data.test")
"""Of the images, which every machine has elsewhere."""
OF_NO_FIGURE = (*OF_NO_RESULT, *PATHS, "data.test_resize", "evaluation.")
"""Keys, or sections, that may be set over an experiment of the paper, which still is that one."""


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Merge YAML files from left to right, then `key=value`; ValueError says what is wrong."""
    layers = [layer for file in files for layer in read_layers(Path(file))]
    none: dict[str, Any] = {}
    given = reduce(merge, map(parse_override, overrides), none)
    merged: dict[str, Any] = {}
    for layer in [*layers, given]:
        if "paper" not in layer and _trains_otherwise(merged, layer):
            merged.pop("paper", None)
        merged = merge(merged, layer)
    preset = merged.get("preset", "code")
    if isinstance(preset, str) and preset in PRESETS:
        merged = merge(PRESETS[preset], merged)
    return build(Config, merged)


def _trains_otherwise(merged: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    """Whether a layer changes what an experiment of the paper is."""
    before = flatten(merged)
    return any(
        not is_among(key, OF_NO_FIGURE) and (key not in before or before[key] != value)
        for key, value in flatten(layer).items()
    )


def is_among(key: str, names: Sequence[str]) -> bool:
    """Whether it is one of them, or in one of the sections, which end with a dot."""
    return any(key == name or (name[-1] == "." and key.startswith(name)) for name in names)


def differing_keys(ours: Config, theirs: Mapping[str, Any]) -> list[str]:
    """Keys of two resolved configs that would train another model, as `key: theirs -> ours`."""
    # A key that was not there yet when theirs was written had what is its default now.
    mine = flatten(ours.model_dump(mode="json"))
    other = flatten(Config().model_dump(mode="json")) | flatten(theirs)
    return [
        f"{key}: {other.get(key)} -> {mine.get(key)}"
        for key in sorted(mine.keys() | other.keys())
        if key.split(".")[0] not in FREE_OF_IDENTITY and mine.get(key) != other.get(key)
    ]
