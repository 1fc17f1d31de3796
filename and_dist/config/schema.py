"""Define the sections of a config: each key's type, bounds, default and meaning. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from and_dist.config.bounds import (
    Channel,
    Count,
    CountOrNone,
    Deviation,
    Gigabytes,
    Minutes,
    PathText,
    Rows,
    Seconds,
    Share,
    ShortText,
    Side,
    Threads,
)
from and_dist.config.limits import LONGEST_NAME
from and_dist.config.method_schema import (
    CurriculumConfig,
    DeepClusterConfig,
    DiscoveryConfig,
    InstanceNceConfig,
    ObjectiveConfig,
)
from and_dist.config.optim_schema import LinearConfig, TrainingOptimConfig
from and_dist.config.paper_figures import FIGURES
from and_dist.config.suggestions import near_names
from and_dist.config.validation import NAME, Section, parse_duration

Plain = bool | int | float | str
Option = Plain | tuple[Plain, ...] | None
"""An argument of a function that builds a network."""
Means = tuple[Channel, Channel, Channel]
Deviations = tuple[Deviation, Deviation, Deviation]


class DataConfig(Section):
    """Say which images are trained on, and how they are read and augmented."""

    train: PathText = "shapes/train"
    """A folder of images (class folders or flat), or an embedded set: shapes/train, shapes/test."""
    test: PathText | None = "shapes/test"
    """Images for evaluation, named like `train`; none takes those held out, if there are any. A
    config file or command line that sets data.train alone sets it to none."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training set that is not trained on, chosen by a hash of the row: test images
    where data.test is none."""
    limit: Rows | None = None
    """Number of rows of the training set that are used; none uses all."""
    limit_test: Rows | None = None
    """Number of rows of the test set that are used; none uses all."""
    image_size: Annotated[int, Field(ge=8, le=8192)] = 32
    """Side of the square images that the encoder sees."""
    test_resize: Side | None = None
    """Resize test images to this shorter side and crop the centre; none takes the whole image."""
    crop_area: tuple[Share, Share] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a training crop takes."""
    jitter: Share = 0.4
    """Strength of brightness, contrast and saturation changes; factors are in 1 -+ jitter."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.4
    """Largest hue change in either direction, as a share of the colour circle."""
    hue_model: Literal["yiq", "hsv"] = "yiq"
    """Jitter colours by one affine map, in which hue turns the chroma plane of YIQ, or by the steps
    of torchvision, each clipped, in which hue moves along the hexagon of HSV."""
    grayscale: Share = 0.2
    """Probability that a training image is made gray."""
    grayscale_first: bool = False
    """Apply grayscale before colour jitter (the ImageNet order) instead of after it."""
    flip: bool = False
    """Mirror each training image with probability 1/2 (ImageNet yes, published CIFAR code no)."""
    bad_images: Literal["stop", "skip"] = "stop"
    """End the run at an image that cannot be read, or keep the image out of loss and bank."""
    decode_mb: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Megabytes of a rank's memory for decoded pixels: larger batches are decoded in parts, and an
    image that alone takes more (3 bytes a pixel) cannot be read."""
    cache_gb: Gigabytes = 0.0
    """Gigabytes of each node's memory for decoded training images; 0 does not cache them."""
    cache_side: Side | None = None
    """Shorter side of cached images; none keeps their size."""
    hardware_decoder: Share = 0.65
    """Share of a batch's JPEGs that a GPU's hardware decoder takes, where there is one."""
    mean: Means = (0.485, 0.456, 0.406)
    """Channel means of the normalisation, for pixels in 0..1."""
    std: Deviations = (0.229, 0.224, 0.225)
    """Channel deviations of the normalisation, for pixels in 0..1."""

    @pydantic.model_validator(mode="after")
    def check_crop_area(self) -> DataConfig:
        """Raise ValueError unless the bounds of the crop area are above 0 and in order."""
        low, high = self.crop_area
        if not 0 < low <= high:
            raise ValueError(f"data.crop_area = [{low}, {high}]: the smallest comes first, above 0")
        return self


class EncoderConfig(Section):
    """Say which network maps images to features, and how it computes."""

    name: ShortText = "cifar_resnet18"
    """Name of the encoder: one of and_dist.models.encoders.ENCODERS; torchvision/NAME or timm/NAME;
    or package.module:function of your own, which returns a network from images to vectors."""
    options: dict[str, Option] = Field(default_factory=dict)
    """Arguments of the function that builds the network, such as {patch_size: 4} for
    torchvision/vit_b_16, with plain values or lists of them; the encoders of and_dist take none."""
    head: Literal["linear", "mlp"] = "linear"
    """Layers between the network and the feature: one, as in the paper, or two with a ReLU between.
    Linear classifiers and exports without head see the network's output before them."""
    hidden_dim: Annotated[int, Field(ge=1, le=65_536)] = 2048
    """Length of what lies between the two layers of head=mlp."""
    hidden_norm: bool = False
    """Use batch norm before that ReLU."""
    feature_dim: Annotated[int, Field(ge=1, le=65_536)] = 128
    """D, the length of a feature and of a bank row."""
    weights: PathText | None = None
    """Initial weights: a run of and-dist; a safetensors file, or a folder of them; a .pth of
    torchvision's or of the published code; or torchvision/IMAGENET1K_V1, timm/resnet50.a1_in1k."""
    init: Literal["pytorch", "he_fan_out"] = "pytorch"
    """First weights of convolutions: PyTorch's defaults, as in the published code, or normal by
    fan-out (He et al.), as torchvision draws those of its ResNets. After 25 epochs on 4,000 images
    of Fashion-MNIST, kNN of a resnet18 was 73.4 % by the first and 74.9 % by the second."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of images and activations; bfloat16 trains by autocast with float32 weights. auto takes
    it on GPUs from the A100 on: an H100 trained AlexNet 1.4 times as fast as with TF32."""
    tf32: bool = True
    """Round what float32 convolutions multiply to TF32 while the encoder trains on a GPU, which is
    several times faster; evaluation, bank and discovery stay float32."""
    deterministic: bool = False
    """Use only kernels of a GPU that repeat to the bit, so that a resumed run equals one that was
    not interrupted; it is slower. On a CPU every run does."""
    channels_last: bool = True
    """Store activations pixel by pixel, and on a GPU kernels too: convolutions are faster. On a CPU
    batch norm then loses a digit or more: features of 256 images by cifar_resnet18 were 8e-6 from
    those of float64 while training, against 3e-7 with false."""
    compile: bool = False
    """Train a network that torch.compile has compiled, which takes minutes and a C++ compiler."""
    checkpointing: bool = False
    """Keep what enters each block of the network, and compute the block again for the backward
    pass: about a third more work for a fraction of the memory. Gradients stay the same."""

    @property
    def at_first(self) -> str:
        """Return what the network is called before it is trained."""
        return "untrained network" if self.weights is None else "loaded weights"


class BankConfig(Section):
    """Say how the memory bank is stored, initialised, multiplied and updated."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type in which rows are stored and compared; sums are in float32 whatever it is."""
    products: Literal["auto", "stored", "float16", "bfloat16"] = "auto"
    """Type of the products of rows; log Z is within 0.0005 / tau in float16, 0.004 / tau in
    bfloat16. auto rounds 100,000 float32 rows and more where that is faster: to float16 on GPUs
    from the A100 on (an H100 took a fifth of the time), for a copy of the shard in a tenth of their
    memory and tau >= 0.07; to bfloat16 on CPUs with AMX or AVX-512's bfloat16."""
    form: Literal["auto", "attention", "cudnn", "flash4", "triton"] = "auto"
    """Form in which a GPU computes the partition of 16-bit products, all as exact. auto times those
    that there are on the run's own shapes, at its first start, and takes the fastest."""
    update_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """eta of Eq. 8, the weight of the NEW feature."""
    renormalise: bool = True
    """Scale a row to unit norm after Eq. 8 (preset code), or leave it (preset paper)."""
    init: Literal["uniform", "features"] = "uniform"
    """First rows: uniform noise (preset code), or features of all images by the fresh network."""
    weights: PathText | None = None
    """A checkpoint of the published code, whose bank, neighbourhoods and momentum the run goes on
    with, from its place in its round; encoder.weights loads its network."""

    @pydantic.model_validator(mode="after")
    def check_first_rows(self) -> BankConfig:
        """Raise ValueError if the first rows come from two places."""
        if self.weights is not None and self.init != "uniform":
            raise ValueError(f"bank.weights gives the first rows: bank.init = {self.init} does too")
        return self


MOST_PIXEL_BYTES = 2_000_000_000
"""The most memory of a rank for the pixels of its images as features."""


class EvaluationConfig(Section):
    """Set the evaluation by kNN and linear classifiers."""

    knn: Count = 200
    """K, the number of neighbours that vote; more than there are images means all."""
    knn_temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.1
    """tau of the votes: 0.1 in the published code, 0.07 in the paper."""
    baselines: bool = True
    """Evaluate kNN of raw pixels and of the untrained network before training."""
    every: CountOrNone = 10
    """Epochs between evaluations of the bank: kNN, a linear probe, and signs of collapse, which
    need no labels; 0 evaluates at the ends of rounds only."""
    linear: LinearConfig = LinearConfig()
    """Training of linear classifiers."""

    def votes_among(self, num_rows: int) -> str:
        """Return the text beside a kNN figure: the K and tau used among `num_rows` rows."""
        return f"K {min(self.knn, num_rows)}, tau {self.knn_temperature}"


class RunConfig(Section):
    """Set the run folder, checkpoints, limits, logs and the device."""

    root: PathText = "runs"
    """Folder that holds the run folders; this run's is ROOT/NAME."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto takes the GPU if there is one."""
    threads: Threads | None = None
    """CPU threads of one rank; none shares the cores among the ranks of a machine."""
    log_every: Count = 20
    """Steps between two records of loss and speed."""
    keep: Count = 2
    """Number of newest checkpoints that are kept beside the last one of each round."""
    save_minutes: Seconds = 10.0
    """Minutes between checkpoints within an epoch; the end of an epoch is always saved."""
    time_limit: ShortText | Minutes | None = None
    """Time since the start before which the run saves and ends: 2d12h, 90m, or as SLURM writes it:
    minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes."""
    stall_seconds: Seconds = 600.0
    """Time without progress after which every rank writes its stacks and ends; it must be longer
    than writing a checkpoint takes."""
    profile: bool = False
    """Profile 20 steps into RUN/profile: a table and a trace for each rank."""
    non_finite: Literal["stop", "roll_back"] = "stop"
    """End the run at a NaN or infinite loss or gradient, or roll back and leave out that batch."""
    most_roll_backs: Count = 3
    """Largest number of batches that may be left out in that way."""
    tensorboard: bool = True
    """Write RUN/tensorboard beside metrics.jsonl."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: offline writes RUN/wandb, for `wandb sync`; online needs an account."""

    @property
    def time_limit_seconds(self) -> float | None:
        """Return the time limit in seconds, or None; raise ValueError if it is no duration."""
        if self.time_limit is None:
            return None
        return parse_duration(str(self.time_limit), "run.time_limit")

    @pydantic.model_validator(mode="after")
    def check_time_limit(self) -> RunConfig:
        """Raise ValueError if the time limit is no duration."""
        assert self.time_limit_seconds != 0  # reading the property parses the text
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
    """Hold everything that a run is asked for."""

    name: Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)] = "run"
    """Name of the run and of its folder."""
    preset: Literal["code", "paper"] = "code"
    """Set of defaults where the paper and the published code differ (see PRESETS)."""
    method: ShortText = "and"
    """Method to train by: `and` discovers neighbourhoods between rounds, `instance` keeps every row
    an instance, `random` trains nothing; the paper compares with the other OBJECTIVES."""
    paper: tuple[str, ...] = ()
    """Figures of the paper that this run is to reproduce, such as table 4/ResNet18/CIFAR10."""
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
        """Return the run folder."""
        return Path(self.run.root) / self.name

    @property
    def last_round(self) -> int:
        """Return the index of the last round."""
        return 0 if self.method == "random" else self.curriculum.rounds

    @property
    def num_epochs(self) -> int:
        """Return the number of epochs of all rounds."""
        return sum(self.epochs_of(r) for r in range(self.last_round + 1))

    def epochs_of(self, round_index: int) -> int:
        """Return the number of epochs of a round."""
        is_untrained = round_index == 0 and self.curriculum.start == "random"
        return 0 if is_untrained or self.method == "random" else self.curriculum.epochs

    @pydantic.field_validator("method")
    @classmethod
    def check_method(cls, method: str) -> str:
        """Raise ValueError if there is no such method."""
        if method not in OBJECTIVES:
            near = near_names(method, OBJECTIVES)
            raise ValueError(f"method = {method!r} is not one of: {', '.join(OBJECTIVES)}{near}")
        return method

    @pydantic.field_validator("paper")
    @classmethod
    def check_paper(cls, paper: tuple[str, ...]) -> tuple[str, ...]:
        """Raise ValueError if a name is not among the paper's figures."""
        for name in paper:
            if name not in FIGURES:
                raise ValueError(
                    f"paper: {name!r} is none of the paper's figures, which are named like "
                    f"{', '.join(list(FIGURES)[::20])} (all in and_dist/config/paper_figures.py)"
                )
        return paper

    @pydantic.model_validator(mode="after")
    def check_rounds(self) -> Config:
        """Raise ValueError if method=and has no round after round 0."""
        if self.method == "and" and self.curriculum.rounds == 0:
            raise ValueError("curriculum.rounds = 0 discovers nothing: that is method=instance")
        return self

    @pydantic.model_validator(mode="after")
    def check_warmup(self) -> Config:
        """Raise ValueError if the learning rate still grows when its span is over."""
        optim, is_run = self.optim, self.optim.span == "run"
        epochs = self.num_epochs if is_run else self.epochs_of(self.last_round)
        if optim.warmup_epochs > 0 and 0 < epochs <= optim.warmup_epochs:
            span = "the run" if is_run else "a round"
            raise ValueError(
                f"optim.warmup_epochs = {optim.warmup_epochs:g} leaves nothing of {span}, which "
                f"has {epochs} epochs; take fewer"
            )
        return self

    @pydantic.model_validator(mode="after")
    def check_start(self) -> Config:
        """Raise ValueError if a random start or method lacks features in the bank."""
        first = {"curriculum.start=random": self.curriculum.start, "method=random": self.method}
        for key, value in first.items():
            if value == "random" and self.bank.init != "features":
                raise ValueError(
                    f"{key} looks at the first rows of the bank: it needs bank.init=features"
                )
        return self
