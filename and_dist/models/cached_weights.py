"""Find the weights that torchvision and timm publish, in the caches that these keep themselves.

    torchvision/IMAGENET1K_V2, torchvision/DEFAULT      of the model that encoder.name names
    timm/resnet50.a1_in1k                               a model of timm's with its tag

A file that is missing is fetched where there is a network, and else told.
"""

from __future__ import annotations

import fcntl
import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from and_dist.config.schema import EncoderConfig
from and_dist.config.suggestions import near_names
from and_dist.models.named_networks import TIMM, TORCHVISION

SECONDS_TO_ANSWER = 10
"""The time after which a server counts as out of reach."""
WEIGHTS_OF_TIMM = "model.safetensors"
"""The name of timm's files of weights in their repositories."""


class CachedWeights(NamedTuple):
    """Hold a file of weights, and the normalisation of the images they were trained on."""

    file: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_published(weights: str) -> bool:
    """Return whether a value of encoder.weights names weights that somebody has published."""
    return weights.startswith((TORCHVISION, TIMM))


def find_cached(weights: str, config: EncoderConfig) -> CachedWeights:
    """Return the published weights of a name.

    Raise ValueError if there are none, or if they are neither here nor within reach.
    """
    if weights.startswith(TORCHVISION):
        return _of_torchvision(weights, config)
    return _of_timm(weights)


def _of_torchvision(weights: str, config: EncoderConfig) -> CachedWeights:
    """Return weights of torchvision's for its model that is trained."""
    import torch
    import torchvision

    model = config.name.removeprefix(TORCHVISION).removeprefix("torchvision_")
    if model not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"encoder.weights={weights}: encoder.name={config.name} is no model of torchvision's"
        )
    known: Any = torchvision.models.get_model_weights(model)
    name = weights.removeprefix(TORCHVISION).rpartition(".")[2]
    if name not in known.__members__:
        near = near_names(name, known.__members__)
        raise ValueError(
            f"encoder.weights={weights}: torchvision has {', '.join(known.__members__)} for "
            f"{model}{near}"
        )
    found = known[name]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(found.url).name
    if not file.exists():
        _check_reach(weights, found.url, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_in(file.parent):  # the ranks of a node share the cache
            if not file.exists():
                prefix = re.search(r"-([0-9a-f]{8,})\.pth$", file.name)
                hashed = prefix.group(1) if prefix else None
                torch.hub.download_url_to_file(found.url, str(file), hashed, progress=False)
    seen = found.transforms()
    return CachedWeights(file, tuple(seen.mean), tuple(seen.std))


def _of_timm(weights: str) -> CachedWeights:
    """Return weights of timm's."""
    try:
        import huggingface_hub
        import timm
    except ImportError:
        raise ValueError(
            f"encoder.weights={weights} needs timm: pip install 'and-dist[timm]'"
        ) from None
    name = weights.removeprefix(TIMM)
    known = timm.list_pretrained(f"{name.partition('.')[0]}*")
    about: Any = timm.get_pretrained_cfg(name) if name in known else None
    if about is None or not about.hf_hub_id:
        near = near_names(name, known)
        some = f"; it has {', '.join(known[:5])}" if known else ""
        raise ValueError(f"encoder.weights={weights}: timm has no such weights{near or some}")
    where = about.hf_hub_id, WEIGHTS_OF_TIMM
    found = huggingface_hub.try_to_load_from_cache(*where)
    if not isinstance(found, str):
        # As the hub lays out its cache; it would try again for half a minute, and print that.
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        folder = f"models--{about.hf_hub_id.replace('/', '--')}"
        address = huggingface_hub.hf_hub_url(*where)
        _check_reach(weights, address, cache / folder / "snapshots" / "REVISION" / where[1])
        found = huggingface_hub.hf_hub_download(*where)
    return CachedWeights(Path(found), tuple(about.mean), tuple(about.std))


@contextmanager
def _only_one_in(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine is within such a block for the folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _check_reach(weights: str, address: str, file: Path) -> None:
    """Raise ValueError if weights that are not here cannot be fetched, saying where they belong."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"encoder.weights={weights} is not on this machine, and its server is out of reach "
            f"({reason}): fetch {address} elsewhere, and put it at {file}"
        ) from None
