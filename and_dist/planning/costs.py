"""List the costs of the encoders: operations, parameters and bytes kept. No torch.

A test counts them in the networks themselves. Those of other networks are counted when they are
asked for, by a program that does take torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from and_dist.config.schema import EncoderConfig
from and_dist.config.suggestions import near_names

FEATURE_DIM = 128
"""The feature dimension that the costs are counted for."""
TRAINING = 6
"""Operations of a training step for each multiplication forward: two forward, four backward."""


class Cost(NamedTuple):
    """Hold the costs of an encoder for images of `side` pixels."""

    multiplications: float
    """Multiplications of one image in the forward pass."""
    parameters: int
    """Number of parameters."""
    tensors: int
    """Number of tensors that hold the parameters."""
    width: int
    """Inputs of the head; each feature more or less is `width` + 1 parameters more or less."""
    buffer_bytes: int
    """Bytes of the running statistics."""
    kept_float32: int
    """Bytes that each image keeps for the backward pass in float32, the image included."""
    kept_bfloat16: int
    """Bytes that each image keeps for the backward pass in bfloat16, the image included."""
    largest: int
    """Numbers in the largest activation of an image."""
    largest_parameter: int
    """Numbers in the largest parameter."""
    side: int
    """Side of the images in pixels."""
    feature_dim: int = FEATURE_DIM
    """The feature dimension that the parameters are counted for."""

    def parameters_at(self, feature_dim: int) -> int:
        """Return the number of parameters with features of another dimension."""
        return self.parameters + (feature_dim - self.feature_dim) * (self.width + 1)

    def kept_bytes(self, precision: str, side: int) -> float:
        """Return the bytes that one image of `side` pixels keeps for the backward pass.

        All of them are taken to grow with the pixels: those behind a pooling to a fixed size are
        few.
        """
        kept = self.kept_float32 if precision == "float32" else self.kept_bfloat16
        return kept * (side / self.side) ** 2

    def largest_bytes(self, precision: str, side: int) -> float:
        """Return the bytes of the largest activation of one image of `side` pixels."""
        return self.largest * (4 if precision == "float32" else 2) * (side / self.side) ** 2

    def operations(self, side: int) -> float:
        """Return the operations of one image of `side` pixels in a training step."""
        return TRAINING * self.multiplications * (side / self.side) ** 2


COSTS = {
    "tiny": Cost(0.618e6, 80_080, 11, 512, 0, 68_200, 34_408, 4_096, 65_536, 32),
    "small": Cost(15.07e6, 421_792, 14, 256, 3_872, 677_384, 396_296, 32_768, 294_912, 32),
    "cifar_resnet18": Cost(
        555.5e6, 11_234_496, 62, 512, 38_560, 4_700_680, 2_350_600, 65_536, 2_359_296, 32
    ),
    "cifar_resnet50": Cost(
        1298e6, 23_762_624, 161, 2048, 212_904, 25_514_504, 12_757_512, 262_144, 2_359_296, 32
    ),
    "cifar_resnet101": Cost(
        2510e6, 42_754_752, 314, 2048, 422_208, 38_883_848, 19_442_184, 262_144, 2_359_296, 32
    ),
    "cifar_alexnet": Cost(
        291.5e6, 37_418_336, 23, 4096, 76_600, 2_454_024, 1_407_496, 98_304, 16_777_216, 32
    ),
    "resnet18": Cost(
        1814e6, 11_242_176, 62, 512, 38_560, 22_180_360, 11_893_256, 802_816, 2_359_296, 224
    ),
    "resnet50": Cost(
        4087e6, 23_770_304, 161, 2048, 212_904, 85_910_024, 43_758_088, 802_816, 2_359_296, 224
    ),
    "resnet101": Cost(
        7800e6, 42_762_432, 314, 2048, 422_208, 126_853_640, 64_229_896, 802_816, 2_359_296, 224
    ),
    "alexnet": Cost(
        1132e6, 58_815_328, 23, 4096, 76_600, 7_338_376, 4_159_304, 290_400, 37_748_736, 224
    ),
    "torchvision_alexnet": Cost(
        710.6e6, 57_528_256, 16, 4096, 0, 3_741_704, 2_224_392, 193_600, 37_748_736, 224
    ),
}
"""Costs by the name of the encoder."""


class Held(NamedTuple):
    """Hold the most bytes that each image holds at once on a GPU in a training step, by precision.

    These are activations and their gradients, without the pixels.
    """

    float32: int
    bfloat16: int


HELD_ON_GPU = {
    "tiny": Held(65_596, 40_976),
    "small": Held(696_320, 405_504),
    "cifar_resnet18": Held(4_751_360, 2_375_680),
    "cifar_resnet50": Held(25_755_648, 12_877_824),
    "cifar_resnet101": Held(39_124_992, 19_562_496),
    "cifar_alexnet": Held(2_457_600, 1_368_064),
    "resnet18": Held(21_776_384, 11_691_008),
    "resnet50": Held(86_102_016, 43_853_824),
    "resnet101": Held(127_045_632, 64_325_632),
    "alexnet": Held(6_905_728, 3_850_560),
    "torchvision_alexnet": Held(3_235_328, 1_871_616),
}
"""Bytes that an image holds on a GPU, by the name of the encoder."""


REFUSED = 2
"""The status of the program that counts costs, for an encoder that it refuses with a message."""


class UncountedEncoder(ValueError):
    """Says that the costs of an encoder cannot be counted where torch is not installed."""


class EncoderCost(NamedTuple):
    """Hold the costs of an encoder, and what its images hold on a GPU."""

    cost: Cost
    held: Held

    def held_bytes(self, precision: str, side: int) -> float:
        """Return the most bytes that one image of `side` pixels holds at once on a GPU."""
        of_precision = self.held.float32 if precision == "float32" else self.held.bfloat16
        return of_precision * (side / self.cost.side) ** 2


def cost_of(encoder: EncoderConfig, side: int) -> EncoderCost:
    """Return the costs of an encoder for images of `side` pixels, or for those it is listed with.

    Raise ValueError for an encoder that does not exist or does not take such images, and for one
    that would have to be counted where torch is not installed.
    """
    is_listed = encoder.head == "linear" and not encoder.checkpointing
    if encoder.name in COSTS and is_listed:
        return EncoderCost(COSTS[encoder.name], HELD_ON_GPU[encoder.name])
    if encoder.name not in COSTS and not {"/", ":"} & set(encoder.name):
        near = near_names(encoder.name, COSTS)
        raise ValueError(
            f"encoder.name={encoder.name!r} is not one of: {', '.join(COSTS)}; nor "
            f"torchvision/NAME, timm/NAME or package.module:function{near}"
        )
    return _count(encoder.model_dump_json(), side)


@cache
def _count(encoder: str, side: int) -> EncoderCost:
    """Return the costs of an encoder, given as JSON, that no table has."""
    if find_spec("torch") is None:
        given = json.loads(encoder)
        raise UncountedEncoder(
            f"encoder.name={given['name']}: its costs are not listed, and counting them takes "
            "torch, which is not installed here; make the plan where it is"
        )
    counted = subprocess.run(
        [sys.executable, "-m", "and_dist.models.counting"],
        input=f'{{"encoder": {encoder}, "side": {side}}}',
        capture_output=True,
        text=True,
        check=False,
    )
    said = (counted.stderr if counted.returncode else counted.stdout).strip().splitlines()
    if counted.returncode == REFUSED and said:
        raise ValueError(said[-1])
    if counted.returncode or not said:
        why = f": {said[-1]}" if said else ""
        raise ValueError(
            f"encoder.name={json.loads(encoder)['name']} ended the program that counts its costs "
            f"(status {counted.returncode}){why}"
        )
    found = json.loads(said[-1])
    held = Held(found.pop("held_float32"), found.pop("held_bfloat16"))
    return EncoderCost(Cost(**found), held)
