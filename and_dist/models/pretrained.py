"""Load weights from a file, or a folder, into an encoder: ours, or those of other programs.

Files are never executed: they are safetensors, or read by and_dist.models.torch_files. Names are
first translated to ours:

    ours                    trunk.layer1.0.conv1.weight             head.weight
    torchvision, timm       layer1.0.conv1.weight                   fc.weight, classifier.6.weight
    the published code      net: module.layer1.0.conv1.weight       linear.weight
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from and_dist.models.encoders import Encoder
from and_dist.models.torch_files import SavedTensor, read_torch_file
from and_dist.utils.pickled_names import PickleError, with_text_keys
from and_dist.utils.plain_files import check_regular

WRAPPERS = ("net", "state_dict", "model", "encoder")
"""Keys under which other programs keep the weights beside the rest of a checkpoint."""
OURS = "encoder."
"""The prefix of an encoder's tensors in a checkpoint of ours."""
PREFIXES = ("timm_model.", "backbone.", "model.")
"""Prefixes of all names where others have saved a network within another."""
MOST_NAMED = 5
"""The most names of tensors that a message tells."""
HEADS = ("linear.", "fc.", "classifier.6.")
"""Names of the last layer in other programs."""


@dataclass(frozen=True)
class Found:
    """Holds the shape of a tensor in a file; `load` reads it."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


def load_weights(encoder: Encoder, file: Path) -> str:
    """Load weights into the encoder, and return a line for the log that names their file.

    A folder is read as a checkpoint of ours, or as others write safetensors, which may be several
    files. If the file has no head of our shape, ours stays as it is, and a classifier that a
    network of the user's own was built without is left out. Raise ValueError if the file
    cannot be read, holds no weights, or holds other names or shapes than the encoder's.
    """
    content = _read(file)
    theirs = {_name_within(encoder, name): found for name, found in content.tensors.items()}
    ours = encoder.state_dict()
    is_headless = any(
        key not in theirs or theirs[key].shape != ours[key].shape
        for key in ours
        if key.startswith("head.")
    )
    classifier = _unbuilt_classifier(encoder, theirs)
    theirs = {k: v for k, v in theirs.items() if k.rpartition(".")[0] != classifier}
    wanted = {k: v for k, v in ours.items() if not (is_headless and k.startswith("head."))}
    theirs = {k: v for k, v in theirs.items() if not (is_headless and k.startswith("head."))}
    # A file may state tensors of any size: only those that fit are loaded.
    _refuse_what_does_not_fit(wanted, theirs, file)
    try:
        loaded = {name: found.load() for name, found in theirs.items()}
    except (PickleError, SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None
    encoder.load_state_dict({**ours, **loaded})
    left_out = f" without {classifier.removeprefix('trunk.')}" if classifier else ""
    head = ", with a fresh head" if is_headless else ""
    return f"weights of {file}{left_out}{head}{THEIR_NORMALISATION if content.is_published else ''}"


class Content(NamedTuple):
    """Holds the tensors of a file by name, and whether the published code wrote it."""

    tensors: dict[str, Found]
    is_published: bool


THEIR_NORMALISATION = (
    ", of the published code: it normalises CIFAR10 and SVHN as configs/base/ does, and its README "
    "names the mean and std of ImageNet, the defaults of data.mean and data.std, for the "
    "pre-trained models"
)


def _read(file: Path) -> Content:
    """Return what a file holds; raise ValueError if it holds no weights."""
    files = sorted(file.glob("*.safetensors")) if file.is_dir() else [file]
    if not files or not files[0].is_file():
        what = "a folder without safetensors files" if file.is_dir() else "no file"
        raise ValueError(f"encoder.weights={file} is {what}")
    try:
        if files[0].suffix == ".safetensors":
            parts = [_read_safetensors(one) for one in files]
            found = {name: tensor for part in parts for name, tensor in part.items()}
            return Content(_of_an_encoder(found), is_published=False)
        saved = read_torch_file(file)
        tensors = _unwrap(saved, file)
        found = {name: Found(tensor.size, tensor.load) for name, tensor in tensors.items()}
        return Content(found, {"npc", "ANs_discovery"} <= with_text_keys(saved).keys())
    except (PickleError, SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None


def _read_safetensors(file: Path) -> dict[str, Found]:
    """Return the tensors of a file by name."""
    check_regular(file)
    content: Any = safe_open(file, "pt")
    return {
        name: Found(tuple(content.get_slice(name).get_shape()), partial(content.get_tensor, name))
        for name in content.keys()  # noqa: SIM118 # it is no mapping
    }


def _of_an_encoder(found: dict[str, Found]) -> dict[str, Found]:
    """Return the encoder's tensors of a checkpoint of ours, or what others have, without a prefix
    that all names share."""
    of_checkpoint = {n.removeprefix(OURS): t for n, t in found.items() if n.startswith(OURS)}
    if of_checkpoint:
        return of_checkpoint
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _unreadable(file: Path, error: Exception) -> ValueError:
    """Return the error about a file that holds something else."""
    return ValueError(
        f"encoder.weights={file} cannot be read: it is neither safetensors nor a file of "
        f"torch.save that holds tensors and plain values alone; nothing else is ever run "
        f"({error})"
    )


def _unwrap(content: Any, file: Path) -> dict[str, SavedTensor]:
    """Return the tensors of a checkpoint by name, from under one of WRAPPERS if need be."""
    if isinstance(content, Mapping):
        content = with_text_keys(content)
        within = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
        tensors = with_text_keys(next(within, content))
        if tensors and all(isinstance(value, SavedTensor) for value in tensors.values()):
            return tensors
    raise ValueError(
        f"encoder.weights={file} holds no weights: neither names with tensors, nor such under "
        f"{', '.join(WRAPPERS)}"
    )


def our_name(name: str) -> str:
    """Return our name of a tensor that we or others call `name`."""
    name = _of_one_device(name)
    if name.startswith(("trunk.", "head.")):
        return name
    for head in HEADS:
        if name.startswith(head):
            return "head." + name.removeprefix(head)
    return "trunk." + name.replace(".shortcut.", ".downsample.")


def _name_within(encoder: Encoder, name: str) -> str:
    """Return an encoder's name of a tensor that we, or the authors of its trunk, call `name`."""
    if encoder.is_ours:
        return our_name(name)
    name = _of_one_device(name)
    if name.startswith("trunk."):
        return name
    if encoder.classifier and name.startswith(f"{encoder.classifier}."):
        return "head." + name.removeprefix(f"{encoder.classifier}.")
    # A head of ours and a layer of theirs may have the same name; theirs is the classifier.
    return name if name in encoder.state_dict() else f"trunk.{name}"


def _unbuilt_classifier(encoder: Encoder, theirs: Mapping[str, Found]) -> str | None:
    """Return the one layer in a file that a network of the user's own was built without.

    It is a linear one on the network's output, as the classifier that published weights have.
    """
    unknown = theirs.keys() - encoder.state_dict().keys()
    layer = min(unknown, default="").rpartition(".")[0]
    is_one = unknown <= {f"{layer}.weight", f"{layer}.bias"} and f"{layer}.weight" in unknown
    if encoder.is_ours or encoder.classifier or not is_one:
        return None
    shape = theirs[f"{layer}.weight"].shape
    return layer if len(shape) == 2 and shape[1] == encoder.width else None


def _of_one_device(name: str) -> str:
    """Return a name without what DataParallel and DDP add to it."""
    return name.removeprefix("module.").replace(".module.", ".")


def _refuse_what_does_not_fit(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Found], file: Path
) -> None:
    """Raise ValueError if names are lacking or unknown, or if shapes differ."""
    optional = ("num_batches_tracked",)  # some published weights are older than this buffer
    lacking = sorted(k for k in ours.keys() - theirs.keys() if not k.endswith(optional))
    unknown = sorted(theirs.keys() - ours.keys())
    misshapen = sorted(
        f"{k} {tuple(theirs[k].shape)} for {tuple(ours[k].shape)}"
        for k in ours.keys() & theirs.keys()
        if ours[k].shape != theirs[k].shape
    )
    for problem, names in (
        ("lacks", lacking),
        ("has unknown", unknown),
        ("has other shapes:", misshapen),
    ):
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            raise ValueError(
                f"encoder.weights={file} does not fit the encoder: it {problem} "
                f"{', '.join(names[:MOST_NAMED])}{more}"
            )
