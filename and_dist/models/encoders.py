"""Build image encoders: a trunk, a head, unit L2 norm.

A new encoder takes a function below and a row in ENCODERS, or nothing at all: named_networks.py
builds those of torchvision and timm, and of users' functions.

B local batch, D feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from and_dist.config.comparison import AUTO
from and_dist.config.schema import EncoderConfig
from and_dist.config.suggestions import near_names
from and_dist.models.named_networks import build_named_network, is_named_network
from and_dist.models.recomputation import recompute_blocks
from and_dist.models.stages import find_stages, nonlinearities
from and_dist.models.torchvision_networks import ResNet, draw_by_fan_out
from and_dist.models.torchvision_networks import alexnet as trunk_of_alexnet

Builder = Callable[[EncoderConfig], "Encoder"]
"""A function that builds an encoder, and draws its first weights as PyTorch does."""


class Encoder(nn.Module):
    """Map images [B, 3, H, W] to features [B, D] of unit norm."""

    def __init__(
        self,
        trunk: nn.Module,
        width: int,
        config: EncoderConfig,
        classifier: str = "",
        stage_names: Sequence[str] = (),
    ) -> None:
        """Put a head on a trunk that returns [B, width]."""
        super().__init__()
        self.trunk = trunk
        self.width = width
        self.head = _build_head(width, config)
        self.classifier = classifier
        """The name that the trunk's authors give the layer in whose place the head is."""
        self.stage_names = tuple(stage_names)
        """The names of the trunk's stages; () leaves them to be found."""
        self.is_ours = True
        """False if others have written the trunk."""
        self.precision = torch.float32
        """Type of activations; weights, gradients and features are float32 whatever it is."""
        self.memory_format = torch.channels_last
        """Layout of activations, which they take from the images."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return features [B, D] of unit norm in float32."""
        images_BCHW = images_BCHW.contiguous(memory_format=self.memory_format)
        is_mixed = self.precision != torch.float32
        with torch.autocast(images_BCHW.device.type, self.precision, enabled=is_mixed):
            unscaled_BD = self.head(self.trunk(images_BCHW))
        # In float32, because bfloat16 would round the norm and every entry.
        return functional.normalize(unscaled_BD.float(), dim=1)


def _build_head(width: int, config: EncoderConfig) -> nn.Module:
    """Return the last layers of an encoder: one linear layer, or two with a ReLU between."""
    if config.head == "linear":
        return nn.Linear(width, config.feature_dim)
    norm = [nn.BatchNorm1d(config.hidden_dim)] if config.hidden_norm else []
    first = nn.Linear(width, config.hidden_dim)
    return nn.Sequential(
        first, *norm, nn.ReLU(inplace=True), nn.Linear(config.hidden_dim, config.feature_dim)
    )


def small(config: EncoderConfig) -> Encoder:
    """Build the demo's network: four convolutions with batch norm, for 32 pixels."""
    widths = (3, 32, 64, 128, 256)
    layers: list[nn.Module] = []
    for at, (before, after) in enumerate(pairwise(widths)):
        layers += _convolution(before, after, 3, padding=1)
        layers += [nn.MaxPool2d(2)] if at < 3 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Encoder(nn.Sequential(*layers), widths[-1], config)


def tiny(config: EncoderConfig) -> Encoder:
    """Build three strided convolutions with group norm, for 32 pixels.

    No layer mixes the images of a batch, so features do not depend on how a batch is cut over
    ranks.
    """
    widths = (3, 16, 32, 32)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
        layers += [nn.GroupNorm(4, after), nn.Tanh()]
    return Encoder(nn.Sequential(*layers, nn.Flatten()), widths[-1] * 16, config)


def resnet(depth: int, for_cifar: bool) -> Builder:
    """Return a builder of torchvision's ResNet of some depth.

    For CIFAR its first convolution is 3x3 with stride 1, and there is no max-pool.
    """

    def build(config: EncoderConfig) -> Encoder:
        trunk = ResNet(depth, is_drawn_by_fan_out=config.init == "he_fan_out")
        if for_cifar:
            trunk.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            if config.init == "he_fan_out":
                draw_by_fan_out(trunk.conv1)
            trunk.maxpool = nn.Identity()
        return Encoder(trunk, trunk.width, config)

    return build


def alexnet(config: EncoderConfig) -> Encoder:
    """Build the batch-norm AlexNet of the instance-discrimination line of work, for 224 pixels."""
    features = nn.Sequential(
        *_convolution(3, 96, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_convolution(96, 256, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *_convolution(256, 384, 3, padding=1),
        *_convolution(384, 384, 3, padding=1),
        *_convolution(384, 256, 3, padding=1),
        nn.MaxPool2d(3, 2),
    )
    return _with_fully_connected(features, 256 * 6 * 6, 4096, config)


def cifar_alexnet(config: EncoderConfig) -> Encoder:
    """Build our AlexNet for 32 pixels, which the paper leaves open.

    It has AlexNet's widths, 3x3 kernels of stride 1 and pooling by 2, so that 4x4 cells reach the
    fully connected layers.
    """
    features = nn.Sequential(
        *_convolution(3, 96, 3, padding=1),
        nn.MaxPool2d(2),
        *_convolution(96, 256, 3, padding=1),
        nn.MaxPool2d(2),
        *_convolution(256, 384, 3, padding=1),
        *_convolution(384, 384, 3, padding=1),
        *_convolution(384, 256, 3, padding=1),
        nn.MaxPool2d(2),
    )
    return _with_fully_connected(features, 256 * 4 * 4, 4096, config)


def torchvision_alexnet(config: EncoderConfig) -> Encoder:
    """Build torchvision's AlexNet, which is narrower and has dropout and no batch norm."""
    return Encoder(trunk_of_alexnet(), 4096, config)


def _convolution(
    before: int, after: int, kernel: int, *, stride: int = 1, padding: int
) -> tuple[nn.Module, ...]:
    """Return a convolution without bias, batch norm and ReLU."""
    return (
        nn.Conv2d(before, after, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _with_fully_connected(
    features: nn.Sequential, cells: int, width: int, config: EncoderConfig
) -> Encoder:
    """Return an encoder of `features` and two fully connected layers with batch norm."""
    layers: list[nn.Module] = [features, nn.Flatten()]
    for before in (cells, width):
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width)]
        layers += [nn.ReLU(inplace=True)]
    return Encoder(nn.Sequential(*layers), width, config)


ENCODERS: dict[str, Builder] = {
    "tiny": tiny,
    "small": small,
    "cifar_resnet18": resnet(18, for_cifar=True),
    "cifar_resnet50": resnet(50, for_cifar=True),
    "cifar_resnet101": resnet(101, for_cifar=True),
    "cifar_alexnet": cifar_alexnet,
    "resnet18": resnet(18, for_cifar=False),
    "resnet50": resnet(50, for_cifar=False),
    "resnet101": resnet(101, for_cifar=False),
    "alexnet": alexnet,
    "torchvision_alexnet": torchvision_alexnet,
}
"""Builders of encoders by name."""


def stages(encoder: Encoder) -> dict[str, nn.Module]:
    """Return the modules whose outputs linear classifiers probe, by name.

    conv1, conv2, ... are the trunk's outputs after each nonlinearity and before pooling; of a
    ResNet they are its stem and its four groups of blocks. Networks that others have written have
    stage1, stage2, ..., which are their blocks (stages.py). fc is the output of the whole trunk,
    which the head sees.
    """
    trunk = encoder.trunk
    if encoder.stage_names:
        found = [trunk.get_submodule(name) for name in encoder.stage_names]
    elif encoder.is_ours:
        found = trunk.probed() if isinstance(trunk, ResNet) else nonlinearities(trunk)
    else:
        found = find_stages(trunk)
    kind = "conv" if encoder.is_ours else "stage"
    return {f"{kind}{at}": module for at, module in enumerate(found, 1)} | {"fc": trunk}


def stage_of_parameters(encoder: Encoder) -> dict[str, int]:
    """Return the number of the stage that each parameter belongs to, by its name.

    What comes before a stage belongs to it, and what comes after the last one to a stage of its
    own. The head is the last of all.
    """
    found: dict[str, int] = {}
    *modules, _ = stages(encoder).values()
    inside, passed = "", 0
    for name, module in encoder.trunk.named_modules(prefix="trunk"):
        if passed < len(modules) and module is modules[passed]:
            inside, passed = f"{name}.", passed + 1
        is_inside = bool(inside) and f"{name}.".startswith(inside)
        for own, _ in module.named_parameters(prefix=name, recurse=False):
            found[own] = passed - is_inside
    last = max(found.values(), default=-1)
    return found | {f"head.{name}": last + 1 for name, _ in encoder.head.named_parameters()}


def build_encoder(config: EncoderConfig, seed: int, side: int | None = None) -> Encoder:
    """Build the named encoder, with weights that follow from the seed and are equal on all ranks.

    `side` is that of the images, which some networks are built for. Raise ValueError for an unknown
    name. The global random state is unchanged.
    """
    check_encoder(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name in ENCODERS:
            encoder = ENCODERS[config.name](config)
        else:
            found, width = build_named_network(config, side)
            encoder = Encoder(found.trunk, width, config, found.classifier, found.stages)
            encoder.is_ours = False
        # A ResNet has drawn them already, at the place where torchvision's does.
        if config.init == "he_fan_out" and not isinstance(encoder.trunk, ResNet):
            draw_by_fan_out(encoder.trunk)
    if config.precision != AUTO:  # a run has chosen before it trains (training/choices.py)
        encoder.precision = getattr(torch, config.precision)
    encoder.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    if config.checkpointing:
        recompute_blocks(encoder.trunk, config.name)
    return encoder


def check_encoder(config: EncoderConfig) -> None:
    """Raise ValueError if there is no encoder of this name, or if it takes no options."""
    if is_named_network(config.name):
        return
    if config.name not in ENCODERS:
        raise ValueError(
            f"encoder.name={config.name!r} is not one of: {', '.join(ENCODERS)}; nor "
            "torchvision/NAME, timm/NAME or package.module:function"
            f"{near_names(config.name, ENCODERS)}"
        )
    if config.options:
        raise ValueError(
            f"encoder.options: {', '.join(config.options)}: encoder.name={config.name} takes none; "
            "networks of torchvision and timm do, such as torchvision/NAME"
        )


def to_device(encoder: Encoder, device: torch.device) -> Encoder:
    """Return the encoder on a device, where a GPU finds its kernels laid out as activations are.

    It would otherwise lay them out anew in every pass. A CPU's library keeps copies of its own.
    """
    if device.type == "cuda":
        encoder.to(memory_format=encoder.memory_format)
    return encoder.to(device)
