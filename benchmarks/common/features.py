"""Make features for benchmarks: drawn around classes, or computed by the network of `make demo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from and_dist.checkpoint.storage import read_latest
from and_dist.config.load import load_config
from and_dist.data.shapes import draw_shapes
from and_dist.models.encoders import Encoder, build_encoder

IMAGES_AT_ONCE = 1000


def draw_classes(
    count: int, dim: int, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return [N, D] unit rows that are drawn around one direction for each class, and [N] classes.

    No network is involved. They are drawn on the generator's device.
    """
    device = generator.device
    centres_CD = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0)).to(device)
    labels_N = torch.randint(classes, (count,), generator=generator, device=device)
    noise_ND = torch.randn(count, dim, generator=generator, device=device)
    return functional.normalize(noise_ND.mul_(3).add_(centres_CD[labels_N]), dim=1), labels_N


def draw_features(run: Path, count: int) -> Tensor:
    """Return [N, D] unit rows: features that a trained run's network computes of newly drawn
    images.

    No image comes twice. The features are saved in the run's folder for the next call. Exit with a
    message if the folder holds no trained run.
    """
    found = read_latest(run / "checkpoints")
    if found is None:
        raise SystemExit(f"{run} holds no trained run; `make demo` makes runs/demo")
    kept = run / f"features-{found[0].name}.pt"
    features_ND = torch.load(kept) if kept.exists() else torch.empty(0)
    if len(features_ND) < count:
        encoder, mean_3, std_3 = _open_encoder(run, found[0])
        parts = range(-(-count // IMAGES_AT_ONCE))
        features_ND = torch.cat([_encode(encoder, part, mean_3, std_3) for part in parts])
        torch.save(features_ND, kept)
    return features_ND[:count]


def _open_encoder(run: Path, checkpoint: Path) -> tuple[Encoder, Tensor, Tensor]:
    config = load_config([run / "config.yaml"])
    encoder = build_encoder(config.encoder, config.seed, config.data.image_size).eval()
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= load_file(file)
    prefix = "encoder."
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    encoder.load_state_dict(weights)
    return encoder, torch.tensor(config.data.mean), torch.tensor(config.data.std)


@torch.no_grad()
def _encode(encoder: Encoder, part: int, mean_3: Tensor, std_3: Tensor) -> Tensor:
    store = draw_shapes(f"benchmark {part}", IMAGES_AT_ONCE).index.store
    pixels_BHW3 = np.stack([store.pixels(row) for row in range(IMAGES_AT_ONCE)])
    images_BHW3 = (torch.from_numpy(pixels_BHW3) / 255 - mean_3) / std_3
    features_BD: Tensor = encoder(images_BHW3.permute(0, 3, 1, 2))
    return features_BD
