"""The sections of a config: what can be set, within which bounds, and what for. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field, PositiveInt

from and_dist.config.paper_figures import FIGURES
from and_dist.config.validation import Section, parse_duration

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Rgb = tuple[Positive, Positive, Positive]


class DataConfig(Section):
    train: str = "shapes/train"
    """A folder of images (class folders or flat), or an embedded set: shapes/train, shapes/test."""
    test: str | None = "shapes/test"
    """As `train`; none switches evaluation on held-out images off."""
    limit: PositiveInt | None = None
    """Use the first rows of the training set only."""
    limit_test: PositiveInt | None = None
    """Use the first rows of the test set only."""
    image_size: Annotated[int, Field(ge=8)] = 32
    """Side of the square images the encoder sees."""
    test_resize: PositiveInt | None = None
    """Test images: shorter side to this, then the centre crop; none takes the whole image."""
    crop_area: tuple[Share, Share] = (0.2, 1.0)
    """Share of the image's area a training crop takes, smallest and largest."""
    jitter: Share = 0.4
    """Strength of brightness, contrast and saturation changes; factors in 1 -+ jitter."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.4
    """Largest hue change as a share of the colour circle, either way."""
    grayscale: Share = 0.2
    """Probability of a gray training image."""
    grayscale_first: bool = False
    """Grayscale before colour jitter (the ImageNet order) instead of after it."""
    flip: bool = False
    """Mirror every other training image (ImageNet yes, the published CIFAR recipe no)."""
    bad_images: Literal["stop", "skip"] = "stop"
    """What an image that cannot be read does: end the run, or stay out of loss and bank."""
    cache_gb: NonNegative = 0.0
    """Hold the decoded training images in the memory of each node, if they fit this many GB."""
    cache_side: PositiveInt | None = None
    """Shorter side of cached images; none keeps them as large as they are."""
    hardware_decoder: Share = 0.65
    """Share of a batch's JPEGs that a GPU's hardware decoder takes, where there is one."""
    mean: Rgb = (0.485, 0.456, 0.406)
    """Channel means of the normalisation, of pixels in 0..1."""
    std: Rgb = (0.229, 0.224, 0.225)
    """Channel deviations of the normalisation, of pixels in 0..1."""

    @pydantic.model_validator(mode="after")
    def check_crop_area(self) -> DataConfig:
        low, high = self.crop_area
        if not 0 < low <= high:
            raise ValueError(f"data.crop_area = [{low}, {high}]: the smallest comes first, above 0")
        return self


class EncoderConfig(Section):
    name: str = "cifar_resnet18"
    """One of and_dist.models.encoders.ENCODERS."""
    feature_dim: PositiveInt = 128
    """D, the length of a feature and of a bank row."""
    weights: str | None = None
    """Start from these: a safetensors file, or a .pth of torchvision's or of the published code."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of images and activations; bfloat16 trains by autocast, its weights stay float32."""
    channels_last: bool = True
    """Activations lie pixel by pixel, on which convolutions are faster."""
    compile: bool = False
    """Train a network that torch.compile has rewritten; it takes minutes and a C++ compiler."""


ROWS_WORTH_ROUNDING = 100_000
"""Below, a partition is a small part of a step, and float32 keeps a run equal on all machines."""


class BankConfig(Section):
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How rows are stored and compared; sums run in float32 all the same."""
    products: Literal["auto", "stored", "bfloat16"] = "auto"
    """Type that rows are multiplied in; log Z is within 0.004 / tau in bfloat16. auto takes that
    where it is faster: 100,000 float32 rows and more, on CPUs with AMX or AVX-512's bfloat16."""
    update_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """eta of Eq. 8, the weight of the NEW feature."""
    renormalise: bool = True
    """Bring a row back to unit norm after Eq. 8 (preset code); paper leaves it as it is."""
    init: Literal["uniform", "features"] = "uniform"
    """First rows: uniform noise (preset code), or a pass of the fresh network over all images."""


class ObjectiveConfig(Section):
    temperature: Annotated[float, Field(ge=0.01, le=10)] = 0.1
    """tau of Eq. 2: 0.1 in the published CIFAR code, 0.07 for ImageNet."""


class CurriculumConfig(Section):
    rounds: Annotated[int, Field(ge=0)] = 4
    """R, the rounds after round 0; R = 1 is one-off discovery, R = 0 leaves instances."""
    epochs: PositiveInt = 200
    """Epochs of every round, round 0 included."""
    start: Literal["instance", "random"] = "instance"
    """Round 0: instance learning, or nothing, so that round 1 discovers in a random network's
    features (the paper's random start; with bank.init=features)."""
    neighbours: Annotated[int, Field(ge=1, le=100)] = 1
    """k, neighbours of an anchor."""


class DiscoveryConfig(Section):
    search: str = "Flat"
    """Flat and fused are exact; else a faiss factory string, an index that copies each shard."""
    recall: Annotated[float, Field(gt=0, le=1)] = 0.98
    """An approximate index looks wider until it finds this share of a sample's nearest rows."""
    memory_mb: Annotated[int, Field(ge=64)] = 200
    """Memory of one rank for discovery, beside its shard, the results and such an index."""

    @property
    def memory_bytes(self) -> int:
        return self.memory_mb * 1_000_000


class InstanceNceConfig(Section):
    negatives: PositiveInt = 4096
    """M, random rows that a query is told from."""
    z: Literal["constant", "estimated"] = "constant"
    """The normaliser of p: of the first step for ever, as published, or estimated at every step."""


class DeepClusterConfig(Section):
    clusters: Annotated[int, Field(ge=2)] = 10_000
    """C, ten times the classes of ImageNet."""
    components: PositiveInt = 256
    """Directions that whitening keeps; more than encoder.feature_dim means all."""
    iterations: PositiveInt = 20
    """Rounds of Lloyd's algorithm before an epoch."""


class OptimConfig(Section):
    batch_size: PositiveInt = 128
    """G, images of one step over all ranks."""
    lr: Positive = 0.03
    """Learning rate at the start of every round."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: NonNegative = 5e-4
    """On every parameter; 5e-4 for CIFAR and SVHN, 1e-4 for ImageNet."""
    milestones: tuple[PositiveInt, ...] = (120, 160)
    """Epochs of a round at which the learning rate falls: code 120, 160; paper 80, 120, 160."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of each fall."""
    fused: bool = True
    """One pass over weights, gradients and momentum, which is faster; sums round differently."""


class TrainingOptimConfig(OptimConfig):
    """Of the encoder, on all ranks."""

    compression: Literal["none", "float16", "bfloat16", "powersgd"] = "none"
    """What gradients travel as between ranks; powersgd sends large layers as products of thin
    matrices, and forgets what it has not sent yet where a run goes on."""


class LinearConfig(OptimConfig):
    """The linear classifiers of `and-dist evaluate --linear`."""

    epochs: PositiveInt = 90
    """Passes over the training images, for all layers at once."""
    batch_size: PositiveInt = 256
    """Images of one step over all ranks."""
    lr: Positive = 0.01
    """Learning rate at the start."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: NonNegative = 1e-4
    """On weights and biases of the classifiers."""
    milestones: tuple[PositiveInt, ...] = (30, 60)
    """Epochs at which the learning rate falls."""


MOST_PIXEL_BYTES = 2_000_000_000
"""Of a rank, for the pixels of its images as features."""


class EvaluationConfig(Section):
    knn: PositiveInt = 200
    """K, neighbours that vote; more than there are images means all."""
    knn_temperature: Positive = 0.1
    """tau of the votes: 0.1 in the published code, 0.07 in the paper."""
    baselines: bool = True
    """kNN of raw pixels and of the untrained network before training starts."""
    every: Annotated[int, Field(ge=0)] = 0
    """Bank-kNN every so many epochs; 0 evaluates at the ends of rounds only."""
    linear: LinearConfig = LinearConfig()
    """How linear classifiers are trained."""

    def votes_among(self, num_rows: int) -> str:
        """What stands beside a kNN figure."""
        return f"K {min(self.knn, num_rows)}, tau {self.knn_temperature}"


class RunConfig(Section):
    root: str = "runs"
    """Folder of run folders; this run lives in ROOT/NAME."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    threads: PositiveInt | None = None
    """CPU threads of one rank; none shares the cores among the ranks of a machine."""
    log_every: PositiveInt = 20
    """Steps between two looks at the loss."""
    keep: PositiveInt = 2
    """Newest checkpoints kept beside each round's last."""
    save_minutes: Positive = 10.0
    """Save this often within an epoch; the end of an epoch is saved always."""
    time_limit: str | PositiveInt | None = None
    """Save and end in time before this much has passed since the start: 2d12h, 90m, or as SLURM
    writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes."""
    stall_seconds: Positive = 600.0
    """Without progress for so long, every rank writes its stacks down and ends; longer than a
    checkpoint takes to write."""
    profile: bool = False
    """Watch 20 steps and write where their time goes: RUN/profile, a table and a trace a rank."""
    non_finite: Literal["stop", "roll_back"] = "stop"
    """What a loss or gradient that is no number does: end the run, or go on without that batch."""
    most_roll_backs: PositiveInt = 3
    """Batches that may be left out so."""
    tensorboard: bool = True
    """Write RUN/tensorboard beside metrics.jsonl."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: offline writes RUN/wandb, for `wandb sync`; online needs an account."""

    @property
    def time_limit_seconds(self) -> float | None:
        if self.time_limit is None:
            return None
        return parse_duration(str(self.time_limit), "run.time_limit")

    @pydantic.model_validator(mode="after")
    def check_time_limit(self) -> RunConfig:
        assert self.time_limit_seconds != 0
        return self


OBJECTIVES = {
    "and": "anchor_neighbourhoods:AnchorNeighbourhoods",
    "instance": "anchor_neighbourhoods:Instances",
    "random": "anchor_neighbourhoods:Instances",
    "supervised": "supervised:Supervised",
    "instance_nce": "instance_nce:InstanceNce",
    "deepcluster": "deepcluster:DeepCluster",
    "nat": "nat:Nat",
}
"""Methods -> the module of and_dist.objectives that defines each, and its class."""


class Config(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run and of its folder."""
    preset: Literal["code", "paper"] = "code"
    """Where paper and published code differ: which one sets the defaults (see PRESETS)."""
    method: str = "and"
    """and discovers neighbourhoods between rounds; instance keeps every row an instance; random
    trains nothing; the other OBJECTIVES are what the paper compares with."""
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
        if method not in OBJECTIVES:
            raise ValueError(f"method = {method!r} is not one of: {', '.join(OBJECTIVES)}")
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
