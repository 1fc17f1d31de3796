"""Try whether images fit an encoder, before anything is computed or written.

B local batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch

from and_dist.config.schema import EncoderConfig
from and_dist.models.encoders import Encoder, build_encoder
from and_dist.models.named_networks import is_named_network

LEAST_SIDE, MOST_TRIED = 8, 320
"""The sides that are tried to say which ones fit; an encoder that takes the largest takes more."""


def build_unfilled(config: EncoderConfig, side: int | None = None) -> Encoder:
    """Build the named encoder with weights that nobody has drawn, in some milliseconds.

    The first weights of AlexNet would take seconds. torch's to_empty() would too, because it loads
    sympy for tensors of the meta device. Networks of others may compute while they are built, which
    that device does not; they are drawn.
    """
    if is_named_network(config.name):
        return build_encoder(config, seed=0, side=side)
    with torch.device("meta"):
        encoder = build_encoder(config, seed=0)
    tensors = encoder.state_dict().items()
    memory = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors}
    encoder.load_state_dict(memory, assign=True)
    return encoder


def check_image_size(config: EncoderConfig, image_size: int) -> None:
    """Raise ValueError unless images of this side fit the encoder; say which ones do."""
    if is_named_network(config.name):
        build_encoder(config, seed=0, side=image_size)  # which tries it
        return
    encoder = build_unfilled(config).eval()
    encoder.precision = torch.float32  # autocast would round all weights in every pass
    if _takes(encoder, image_size):
        return
    fitting = [side for side in range(LEAST_SIDE, MOST_TRIED + 1) if _takes(encoder, side)]
    takes = "and more" if fitting[-1] == MOST_TRIED else f"to {fitting[-1]}"
    raise ValueError(
        f"data.image_size = {image_size} does not fit encoder.name={config.name}, which takes "
        f"images of {fitting[0]} {takes} pixels"
    )


@torch.no_grad()
def _takes(encoder: Encoder, side: int) -> bool:
    """Return whether the layers of an encoder fit images of a side.

    A batch of no images has the shapes of any other, and takes no time.
    """
    try:
        encoder(torch.empty(0, 3, side, side))
    except RuntimeError:  # of torch, about sizes that do not fit
        return False
    return True
