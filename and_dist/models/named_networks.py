"""Build networks that others have written: torchvision's, timm's, or a function of one's own.

    torchvision/NAME            torchvision.models.get_model
    timm/NAME                   timm.create_model; pip install 'and-dist[timm]'
    package.module:function     called with encoder.options, and imported from where one stands too

Each is built without its classifier, so that it maps images [B, 3, H, W] to vectors [B, width].
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from and_dist.config.schema import EncoderConfig
from and_dist.config.suggestions import near_names
from and_dist.config.trust import is_trusted

TORCHVISION, TIMM = "torchvision/", "timm/"
DEFAULT_SIDE = 224
"""The side of images where nobody gives one."""
LOADING = (
    *("weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
)
"""Arguments of torchvision's and timm's functions that fetch or load weights, by torch.load too."""
WRONG_OPTIONS = (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""Errors of torchvision and timm about values of arguments that they cannot use."""


class NamedNetwork(NamedTuple):
    """Hold a network without its classifier."""

    trunk: nn.Module
    classifier: str
    """The name of the layer that was taken out, as weights are named; "" if there was none."""
    stages: tuple[str, ...]
    """The names of the modules whose outputs are its stages; () leaves them to be found."""


class CannotTakeImages(ValueError):
    """Says that a network does not take images of some side."""


def is_named_network(name: str) -> bool:
    """Return whether a name is of a network that others have written."""
    return name.startswith((TORCHVISION, TIMM)) or ":" in name


def build_named_network(config: EncoderConfig, side: int | None) -> tuple[NamedNetwork, int]:
    """Build the network that encoder.name names, for images of `side` pixels.

    Return it with the length of the vectors that it returns.

    Raise ValueError if there is none, if it does not take such options or images, or if it returns
    no vectors.
    """
    name, options = config.name, dict(config.options)
    side = side or DEFAULT_SIDE
    if refused := [key for key in options if key in LOADING]:
        raise ValueError(
            f"encoder.options: {', '.join(refused)} would load a file; encoder.weights does that, "
            "and executes none"
        )
    try:
        if name.startswith(TORCHVISION):
            found = _of_torchvision(name.removeprefix(TORCHVISION), options, side)
        elif name.startswith(TIMM):
            found = _of_timm(name.removeprefix(TIMM), options, side)
        else:
            found = _of_function(name, options)
    except WRONG_OPTIONS as error:
        if ":" in name and not isinstance(error, TypeError):
            raise  # from the user's own code
        shown = ", ".join(options) or "none"
        raise ValueError(f"encoder.name={name} with encoder.options {shown}: {error}") from None
    return found, _width_of(found.trunk, name, side)


def _of_torchvision(name: str, options: Mapping[str, Any], side: int) -> NamedNetwork:
    """Return a model of torchvision's, whose last layer gives way to nothing."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = near_names(name, known)
        raise ValueError(
            f"encoder.name={TORCHVISION}{name}: torchvision has no such model{near or _some(known)}"
        )
    if name.startswith("vit_"):
        network = _vision_transformer(name, options, side)
    else:
        network = torchvision.models.get_model(name, **options)
    linear = [at for at, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"encoder.name={TORCHVISION}{name} has no linear layer at its end, which the head "
            "would take the place of"
        )
    _take_out(network, linear[-1])
    return NamedNetwork(network, linear[-1], ())


def _vision_transformer(name: str, options: Mapping[str, Any], side: int) -> nn.Module:
    """Return a ViT of torchvision's for images of `side` pixels.

    get_model() lets nobody change the sides of patches, which small images need.
    """
    import torchvision

    with torch.device("meta"):  # for its settings alone
        usual = transformer_settings(torchvision.models.get_model(name))
    settings = {**usual, **options, "image_size": side}
    _check_patches(f"{TORCHVISION}{name}", settings["patch_size"], side)
    network: nn.Module = torchvision.models.VisionTransformer(**settings)
    return network


def transformer_settings(network: Any) -> dict[str, int]:
    """Return the arguments that build a ViT of torchvision's anew."""
    return {
        "image_size": network.image_size,
        "patch_size": network.patch_size,
        "num_layers": len(network.encoder.layers),
        "num_heads": network.encoder.layers[0].num_heads,
        "hidden_dim": network.hidden_dim,
        "mlp_dim": network.mlp_dim,
    }


def _of_timm(name: str, options: Mapping[str, Any], side: int) -> NamedNetwork:
    """Return a model of timm's without its classifier."""
    try:
        import timm
    except ImportError:
        raise ValueError(
            f"encoder.name={TIMM}{name} needs timm: pip install 'and-dist[timm]'"
        ) from None
    if not timm.is_model(name):
        known = timm.list_models()
        near = near_names(name.partition(".")[0], known)
        raise ValueError(f"encoder.name={TIMM}{name}: timm has no such model{near or _some(known)}")
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    given: dict[str, Any] = {"num_classes": 0, **options}
    if settings is not None and settings.fixed_input_size:
        given.setdefault("img_size", side)
    try:
        network = timm.create_model(name, **given)
    except (AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise _does_not_take(f"{TIMM}{name}", side, error) from None
    patches: Any = getattr(network, "patch_embed", None)
    if settings is not None and settings.fixed_input_size and hasattr(patches, "patch_size"):
        _check_patches(f"{TIMM}{name}", max(patches.patch_size), side)
    features: Any = getattr(network, "feature_info", None) or ()
    stages = tuple(info["module"] for info in features)
    about: Any = network.default_cfg
    classifier = about.get("classifier") or ""
    return NamedNetwork(
        network, classifier if isinstance(classifier, str) else classifier[0], stages
    )


def _of_function(name: str, options: Mapping[str, Any]) -> NamedNetwork:
    """Return what a function of the user's returns; raise ValueError unless that is a network."""
    if not is_trusted():
        raise ValueError(
            f"encoder.name={name} is code that this run asks to be executed; look at it, and add "
            "--trust if you trust it"
        )
    module_name, _, function_name = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"encoder.name={name}: {error} (looked in {here}, too)") from None
    build = getattr(module, function_name, None)
    if not callable(build):
        functions = [at for at, value in vars(module).items() if callable(value)]
        near = near_names(function_name, functions)
        raise ValueError(f"encoder.name={name}: {module_name} has no such function{near}")
    network = build(**options)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"encoder.name={name} returned {type(network).__name__}, and has to return a "
            "torch.nn.Module that maps images to vectors"
        )
    return NamedNetwork(network, "", ())


def _width_of(trunk: nn.Module, name: str, side: int) -> int:
    """Return the length of the vectors of a network; raise ValueError if it returns none.

    It is asked as it trains, because some return more then. It stays as it was.
    """
    before = {at: buffer.clone() for at, buffer in trunk.named_buffers()}
    was_training = trunk.training
    try:
        with torch.no_grad():
            output = trunk.train()(torch.zeros(2, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _does_not_take(name, side, error) from None
    finally:
        trunk.train(was_training)
        for at, buffer in trunk.named_buffers():
            buffer.copy_(before[at])
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 2:
        shape = f" of the shape {list(output.shape)}" if isinstance(output, Tensor) else ""
        raise ValueError(
            f"encoder.name={name} returns a {type(output).__name__}{shape} for two images, and has "
            "to return a vector for each: [2, width]"
        )
    return output.shape[1]


def _check_patches(name: str, patch: int, side: int) -> None:
    """Raise ValueError unless an image is cut into whole patches."""
    if side % patch:
        near = sorted({max(patch, side // patch * patch), (side // patch + 1) * patch})
        raise CannotTakeImages(
            f"data.image_size = {side} does not fit encoder.name={name}, whose patches have "
            f"{patch} pixels: it takes multiples of them, such as "
            f"{' or '.join(map(str, near))}; or set patch_size in encoder.options"
        )


def _does_not_take(name: str, side: int, error: Exception) -> CannotTakeImages:
    """Return the error about images that a network refuses."""
    reason = " ".join(str(error).split())[:200]
    return CannotTakeImages(
        f"data.image_size = {side} does not fit encoder.name={name}, or its encoder.options do not "
        f"({reason})"
    )


def _take_out(network: nn.Module, name: str) -> None:
    """Put an identity in the place of a layer."""
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, nn.Identity())


def _some(known: Sequence[str]) -> str:
    """Return a part of a sentence that names a few of many."""
    return f"; it has {len(known):,}, such as {', '.join(known[:: len(known) // 4][:4])}"
