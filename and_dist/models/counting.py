"""Count the operations and bytes of any encoder on tensors that hold no values.

`and-dist plan` runs this as a program of its own, since it does without torch otherwise:

    echo '{"encoder": {"name": "torchvision/convnext_tiny"}, "side": 224}' |
        python -m and_dist.models.counting
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from and_dist.config.schema import EncoderConfig
from and_dist.config.trust import trusting
from and_dist.config.validation import build
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.stages import blocks_of

BATCHES = 2, 5
"""Numbers of images whose difference tells what each image adds."""
OPERATIONS = 2
"""Operations of a multiplication and the sum after it."""
BEYOND_KEPT = 1.05
"""The most that an image holds on a GPU, as a share of what it keeps for the backward pass without
its pixels: between 1.01 and 1.05 for the encoders of and-dist, whose steps were followed."""


def count_encoder(config: EncoderConfig, side: int) -> dict[str, Any]:
    """Return the costs of an encoder for images of `side` pixels, as planning.costs holds them."""
    usual = {"precision": "float32", "checkpointing": False}
    encoder = build_encoder(config.model_copy(update=usual), 0, side)
    sizes = [parameter.numel() for parameter in encoder.parameters()]
    fake = FakeTensorMode()
    with FakeCopyMode(fake):
        hollow = copy.deepcopy(encoder)
    with fake:
        kept = {name: _kept_of_an_image(hollow, name, side, config) for name in PRECISIONS}
        hollow.precision = torch.float32
        operations, largest = _one_pass(hollow, side)
    pixels = {name: 3 * side**2 * torch.finfo(getattr(torch, name)).bits // 8 for name in kept}
    return {
        "multiplications": operations / OPERATIONS / BATCHES[0],
        "parameters": sum(sizes),
        "tensors": len(sizes),
        "width": _last_layer(encoder.head).in_features,
        "buffer_bytes": sum(buffer.nbytes for buffer in encoder.buffers()),
        **{f"kept_{name}": size for name, size in kept.items()},
        "largest": largest,
        "largest_parameter": max(sizes),
        "side": side,
        "feature_dim": config.feature_dim,
        **{f"held_{name}": round(BEYOND_KEPT * (kept[name] - pixels[name])) for name in kept},
    }


PRECISIONS = "float32", "bfloat16"


def _last_layer(head: nn.Module) -> nn.Linear:
    """Return the layer that gives the feature."""
    *_, last = (module for module in head.modules() if isinstance(module, nn.Linear))
    return last


def _kept_of_an_image(encoder: Encoder, precision: str, side: int, config: EncoderConfig) -> int:
    """Return the bytes that each image keeps for the backward pass.

    Where blocks are computed again, only what is outside of them is kept, and the largest of them.
    """
    encoder.precision = getattr(torch, precision)
    blocks = blocks_of(encoder.trunk) if config.checkpointing else []
    few, more = (_kept_bytes(encoder, side, count, blocks) for count in BATCHES)
    added = BATCHES[1] - BATCHES[0]
    each = [(after - before) / added for before, after in zip(few, more, strict=True)]
    outside, entering, within = each[0], each[1 : 1 + len(blocks)], each[1 + len(blocks) :]
    return round(outside + sum(entering) + max(within, default=0.0))


def _kept_bytes(encoder: Encoder, side: int, count: int, blocks: Sequence[nn.Module]) -> list[int]:
    """Return the bytes that a forward pass keeps, weights left out and each memory counted once:
    outside of all blocks; what enters each block; and inside of each block."""
    own = {parameter.untyped_storage()._cdata for parameter in encoder.parameters()}
    places: list[dict[int, torch.UntypedStorage]] = [{} for _ in range(1 + 2 * len(blocks))]
    here = [0]

    def note(tensor: Tensor, place: int) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and not any(storage._cdata in p for p in places[:1]):
            places[place][storage._cdata] = storage
        return tensor

    def enter(at: int, inputs: tuple[Any, ...]) -> None:
        here.append(1 + len(blocks) + at)
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                note(tensor, 1 + at)

    hooks = []
    for at, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(lambda _, given, at=at: enter(at, given)))
        hooks.append(block.register_forward_hook(lambda *_: here.pop() and None))
    images_BCHW = torch.empty(count, 3, side, side, dtype=encoder.precision)
    images_BCHW = images_BCHW.contiguous(memory_format=encoder.memory_format)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: note(t, here[-1]), lambda t: t):
        encoder.train()(images_BCHW)
    for hook in hooks:
        hook.remove()
    return [sum(storage.nbytes() for storage in place.values()) for place in places]


def _one_pass(encoder: Encoder, side: int) -> tuple[int, int]:
    """Return the operations of a forward pass, and the numbers of an image's largest activation."""
    sizes = [0]

    def hear(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found = [tensor for tensor in tree_leaves(output) if isinstance(tensor, Tensor)]
        sizes.extend(tensor[0].numel() for tensor in found if tensor.ndim)

    leaves = [module for module in encoder.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(hear) for module in leaves]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(BATCHES[0], 3, side, side))
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), max(sizes)


def main() -> int:
    """Read an encoder's config and a side, write its costs or what is wrong with it."""
    given = json.load(sys.stdin)
    try:
        with trusting():
            print(json.dumps(count_encoder(build(EncoderConfig, given["encoder"]), given["side"])))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
