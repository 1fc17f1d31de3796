"""Features of a trained network for benchmarks: what `make demo` learned, of newly drawn images."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from and_dist.checkpoint import read_latest
from and_dist.config import load_config
from and_dist.data.datasets import draw_shapes
from and_dist.encoders import build_encoder

IMAGES_AT_ONCE = 1000


@torch.no_grad()
def draw_features(run: Path, count: int) -> Tensor:
    """[N, D] unit rows; of a training set's kind, but no image twice."""
    found = read_latest(run / "checkpoints")
    if found is None:
        raise SystemExit(f"{run} holds no trained run; `make demo` makes runs/demo")
    config = load_config([run / "config.yaml"])
    encoder = build_encoder(config.encoder, config.seed).eval()
    tensors: dict[str, Tensor] = {}
    for file in found[0].glob("*.safetensors"):
        tensors |= load_file(file)
    prefix = "encoder."
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    encoder.load_state_dict(weights)
    mean_3, std_3 = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    features = []
    for part in range(-(-count // IMAGES_AT_ONCE)):
        store = draw_shapes(f"benchmark {part}", IMAGES_AT_ONCE).index.store
        pixels_BHW3 = torch.stack(
            [torch.from_numpy(store.pixels(r)) for r in range(IMAGES_AT_ONCE)]
        )
        images_BHW3 = (pixels_BHW3.float() / 255 - mean_3) / std_3
        features.append(encoder(images_BHW3.permute(0, 3, 1, 2)))
    return torch.cat(features)[:count]
