"""Offer training and trained runs to other programs; `and_dist` gives these names lazily."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from and_dist.checkpoint.export import Pixels
from and_dist.checkpoint.reader import load_encoder as read_encoder
from and_dist.checkpoint.reader import open_checkpoint, refuse_corrupt
from and_dist.config.load import load_config as load_layers
from and_dist.config.schema import Config
from and_dist.config.trust import trusting
from and_dist.config.validation import build
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import lone_world
from and_dist.evaluation.loaded_run import LoadedRun
from and_dist.models.encoders import build_encoder
from and_dist.runs.console import Style
from and_dist.training.session import run_training


def load_config(path: str | Path, *overrides: str) -> Config:
    """Return the config of a YAML file, or of a shipped one by its bare name, with overrides.

    Raise ValueError with a sentence for each key or value that is wrong.

    Args:
        path: A file, or a name such as `demo` or `paper/cifar10-alexnet`.
        overrides: Texts of the form key=value, such as `optim.lr=0.06`.

    Example:
        >>> config = and_dist.load_config("demo", "optim.lr=0.03")
        >>> config.optim.lr, config.encoder.name
        (0.03, 'small')
    """
    return load_layers([path], list(overrides))


def train(config: Config, style: Style = "quiet") -> dict[str, Any]:
    """Train a run to its end, or resume it, and return its summary, equal on all ranks.

    Under torchrun every worker calls it with the same config. A signal, or the time limit, makes
    all ranks save and raise and_dist.distributed.watchdog.Stopped; the same call goes on later.

    Args:
        config: The config, which also says where the run folder lies.
        style: `quiet`, `plain`, `json`, `live`, or `auto` as the command prints.

    Returns:
        The content of summary.json: {"rounds": [...], "raw_pixels": ..., "seconds": ...}.

    Example:
        >>> config = and_dist.load_config("debug", "run.root=runs", "name=api-train")
        >>> summary = and_dist.train(config)
        >>> [row["anchors"] for row in summary["rounds"]]
        [0, 100, 200]
    """
    with Watchdog() as watchdog:
        return run_training(config, watchdog, style)


def load(
    run: str | Path,
    checkpoint: str | None = None,
    device: str | torch.device = "cpu",
    trust: bool = False,
) -> LoadedRun:
    """Return a trained run: its encoder, bank, preprocessing and neighbours.

    Raise ValueError if there is no such run or checkpoint, or if it is corrupt.

    Args:
        run: The run folder.
        checkpoint: A name such as `r01-e0020`; the newest without it.
        device: Where encoder and bank lie.
        trust: Call the function that the run has for its encoder.name, if it has one.

    Example:
        >>> run = and_dist.load("runs/demo")
        >>> features_BD = run.embed(["mine.jpg"])
        >>> features_BD.shape
        torch.Size([1, 128])
        >>> run.bank.features_SD.shape[1]
        128
    """
    with trusting(trust):
        return LoadedRun(open_checkpoint(Path(run), checkpoint), torch.device(device))


def load_encoder(run_or_file: str | Path, trust: bool = False) -> nn.Module:
    """Return the encoder of a run, or of a file of `and-dist export --format safetensors`.

    It maps normalised images [B, 3, H, W] to features [B, D] of unit norm; without a head, which
    `export --no-head` leaves out, it returns what the trunk gives. Raise ValueError for anything
    else.

    Args:
        run_or_file: A run folder, whose newest checkpoint is taken, or an exported file.
        trust: Call the function that it has for its encoder.name, if it has one.

    Example:
        >>> encoder = and_dist.load_encoder("runs/demo")
        >>> encoder(torch.zeros(2, 3, 32, 32)).norm(dim=1).allclose(torch.ones(2))
        True
    """
    path = Path(run_or_file)
    with trusting(trust):
        if path.is_file():
            return _exported(path)
        opened, world = open_checkpoint(path), lone_world(torch.device("cpu"))
        refuse_corrupt(opened, world)
        return read_encoder(opened, world)


def _exported(file: Path) -> nn.Module:
    """Return the encoder in an exported file."""
    wanted = "right is a file of `and-dist export --format safetensors`"
    try:
        with safe_open(file, "pt") as content:
            about = content.metadata() or {}
            names = content.keys()
            weights: dict[str, Tensor] = {name: content.get_tensor(name) for name in names}
        config = build(Config, json.loads(about["config"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file} holds no exported encoder ({error}); {wanted}") from None
    has_head = any(name.startswith("head.") for name in weights)
    encoder = build_encoder(config.encoder, config.seed, config.data.image_size)
    module: nn.Module = encoder if has_head else Pixels(encoder, has_head=False)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(f"{file} does not fit its config ({lines[-1].strip()})") from None
    return module.eval()
