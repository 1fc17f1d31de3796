"""Build the trunks of torchvision's ResNets and AlexNet, with its names and, if asked, its first
weights.

They are written out here because importing torchvision loads torch.compile, and every rank would
wait more than a second for that. A test compares weights and outputs with torchvision's.

B local batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

CLASSES = 1000
"""The size of the last layer that torchvision draws. A trunk lacks it, but what is drawn after it
follows from it, so it is drawn as well."""
STAGE_WIDTHS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of each stage by depth."""
FIRST_WITH_BOTTLENECKS = 50


class Block(nn.Module):
    """Adds what its convolutions compute to its input."""

    def __init__(self, before: int, width: int, stride: int, is_bottleneck: bool) -> None:
        """Build two 3x3 convolutions, or one between two of 1x1 that take four times its width."""
        super().__init__()
        after = 4 * width if is_bottleneck else width
        # torchvision draws this one first, and registers it last.
        fits = stride == 1 and before == after
        downsample = None
        if not fits:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            downsample = nn.Sequential(conv, nn.BatchNorm2d(after))
        if is_bottleneck:
            self.conv1 = nn.Conv2d(before, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, after, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(after)
        else:
            self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.is_bottleneck = is_bottleneck

    def forward(self, input_BCHW: Tensor) -> Tensor:
        """Return the sum after its ReLU."""
        inner_BCHW = self.relu(self.bn1(self.conv1(input_BCHW)))
        inner_BCHW = self.bn2(self.conv2(inner_BCHW))
        if self.is_bottleneck:
            inner_BCHW = self.bn3(self.conv3(self.relu(inner_BCHW)))
        if self.downsample is not None:
            input_BCHW = self.downsample(input_BCHW)
        inner_BCHW += input_BCHW
        output_BCHW: Tensor = self.relu(inner_BCHW)
        return output_BCHW


class ResNet(nn.Module):
    """Maps images to the mean of its last feature map, [B, width]."""

    def __init__(self, depth: int, is_drawn_by_fan_out: bool) -> None:
        """Build torchvision's ResNet of some depth, without its classifier.

        Its first weights are torchvision's if they are drawn by fan-out, else PyTorch's defaults.
        """
        super().__init__()
        is_bottleneck = depth >= FIRST_WITH_BOTTLENECKS
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        before = 64
        for at, (width, count) in enumerate(zip(STAGE_WIDTHS, BLOCKS[depth], strict=True)):
            stage: list[nn.Module] = []
            for index in range(count):
                stride = 2 if at and not index else 1
                stage.append(Block(before, width, stride, is_bottleneck))
                before = 4 * width if is_bottleneck else width
            setattr(self, f"layer{at + 1}", nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.width = before
        nn.Linear(self.width, CLASSES)
        if is_drawn_by_fan_out:
            draw_by_fan_out(self)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return [B, width]."""
        maps_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        for stage in self.stages():
            maps_BCHW = stage(maps_BCHW)
        return torch.flatten(self.avgpool(maps_BCHW), 1)

    def probed(self) -> list[nn.Module]:
        """Return the stem's nonlinearity and the four groups of blocks."""
        return [self.relu, *self.stages()]

    def stages(self) -> list[nn.Module]:
        """Return the four groups of blocks."""
        return [getattr(self, f"layer{at + 1}") for at in range(len(STAGE_WIDTHS))]


def draw_by_fan_out(network: nn.Module) -> None:
    """Draw the first weights of all convolutions as torchvision's ResNets do, after He et al."""
    for module in network.modules():
        # On the meta device there are no weights, and torch would load sympy for them, in seconds.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _PoolToSide(nn.AdaptiveAvgPool2d):
    """Leaves activations as they are if they have the size already, as those of 224 pixels do.

    Pooling would not change them, and its backward pass on a GPU does not repeat to the bit.
    """

    def forward(self, activations_BCHW: Tensor) -> Tensor:
        """Return activations of the wanted side."""
        side = self.output_size
        if tuple(activations_BCHW.shape[2:]) == (side, side):
            return activations_BCHW
        pooled_BCHW: Tensor = super().forward(activations_BCHW)
        return pooled_BCHW


def alexnet() -> nn.Module:
    """Build torchvision's AlexNet without its last layer; it returns [B, 4096]."""
    features: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
    ]
    classifier: list[nn.Module] = []
    for before in (256 * 6 * 6, 4096):
        classifier += [nn.Dropout(), nn.Linear(before, 4096), nn.ReLU(inplace=True)]
    nn.Linear(4096, CLASSES)
    parts: dict[str, nn.Module] = {
        "features": nn.Sequential(*features),
        "avgpool": _PoolToSide(6),
        "flatten": nn.Flatten(),
        "classifier": nn.Sequential(*classifier),
    }
    return nn.Sequential(OrderedDict(parts))
