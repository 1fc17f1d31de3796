"""Load the weights that a run begins with, from wherever encoder.weights says."""

from __future__ import annotations

from pathlib import Path

from and_dist.checkpoint.reader import open_checkpoint
from and_dist.config.schema import Config
from and_dist.models.cached_weights import find_cached, is_published
from and_dist.models.encoders import Encoder
from and_dist.models.pretrained import load_weights


def load_first_weights(encoder: Encoder, config: Config) -> str:
    """Load the weights that encoder.weights names; return a line for the log about them.

    Raise ValueError if there are none, or if they do not fit the encoder.
    """
    weights = str(config.encoder.weights)
    path = Path(weights)
    if path.exists() or not is_published(weights):
        is_run = (path / "checkpoints").is_dir()
        return load_weights(encoder, open_checkpoint(path).checkpoint if is_run else path)
    found = find_cached(weights, config.encoder)
    said = load_weights(encoder, found.file)
    ours = config.data.mean, config.data.std
    if ours == (found.mean, found.std):
        return said
    return (
        f"{said}, which were trained on images of data.mean={_listed(found.mean)} "
        f"data.std={_listed(found.std)}; this run has {_listed(ours[0])} and {_listed(ours[1])}"
    )


def _listed(values: tuple[float, ...]) -> str:
    """Return numbers as a config writes them."""
    return f"[{', '.join(f'{value:g}' for value in values)}]"
