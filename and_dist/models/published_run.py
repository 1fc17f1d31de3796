"""Read what the published code saves of a run.

Its checkpoints, which Python 2 wrote, hold `net`, `optimizer`, `npc` (the bank), `ANs_discovery`
(the neighbourhoods of the round), `round`, `epoch`, and the accuracy by which they were chosen.
Nothing in them is executed.

N all rows, D feature, A anchors, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from and_dist.models.pretrained import our_name
from and_dist.models.torch_files import SavedTensor, read_torch_file
from and_dist.utils.pickled_names import PickleError, with_text_keys

MOST_ROUNDS = 10**6
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""The last parts of names in `net` that are no parameters, and have no momentum."""


@dataclass(frozen=True)
class PublishedRun:
    """Holds how far a run of the published code had come, and what it had learned but its net."""

    file: Path
    round_index: int
    epochs: int
    """The number of finished epochs of that round."""
    consistency: float
    """The share of neighbours that have their anchor's class."""
    bank: SavedTensor
    neighbours_AK: Tensor
    """Rows of the anchors' neighbours, nearest first."""
    anchors_A: Tensor
    """Rows of the anchors, in ascending order of entropy."""
    entropy_N: Tensor
    momentum: dict[str, SavedTensor]
    """The momentum of each parameter, by our name of it; empty if there is none."""


def read_published_run(file: Path) -> PublishedRun:
    """Read a checkpoint of the published code; raise ValueError for anything else."""
    try:
        content = _texts(read_torch_file(file))
        found, npc = _texts(content["ANs_discovery"]), _texts(content["npc"])
        round_index, epochs = (_count(content[name]) for name in ("round", "epoch"))
        bank = npc["memory"]
        if not isinstance(bank, SavedTensor) or len(bank.size) != 2:
            raise PickleError("its npc.memory is no bank")
        neighbours_AK, anchors_A = _rows(found["neighbours"]), _rows(found["anchor_indexes"])
        shapes = (1, 2) if len(anchors_A) else (1, neighbours_AK.dim())
        if len(neighbours_AK) != len(anchors_A) or (anchors_A.dim(), neighbours_AK.dim()) != shapes:
            raise PickleError("its anchors and neighbours do not fit each other")
        return PublishedRun(
            file,
            round_index,
            epochs,
            float(_load(found["consistency"], 1)),
            bank,
            neighbours_AK if len(anchors_A) else neighbours_AK.reshape(0, 0),
            anchors_A,
            _load(found["entropy"], bank.size[0]).double().flatten(),
            _momentum(content),
        )
    except KeyError as error:
        raise ValueError(f"{_none_of_theirs(file)}: it has no {error}") from None
    except OSError as error:
        raise ValueError(f"{_none_of_theirs(file)}: {error.strerror or error}") from None
    except (PickleError, TypeError, RuntimeError) as error:
        raise ValueError(f"{_none_of_theirs(file)}: {error}") from None


def _none_of_theirs(file: Path) -> str:
    """Return the beginning of an error message."""
    return f"bank.weights={file} is no checkpoint of the published code"


def _texts(content: Any) -> dict[str, Any]:
    """Return a mapping whose keys are text, which Python 2 has written as bytes."""
    if not isinstance(content, Mapping):
        raise PickleError("it has a value where a mapping belongs")
    return with_text_keys(content)


def _count(value: Any) -> int:
    """Return a number of rounds or epochs."""
    if not isinstance(value, int) or not 0 <= value <= MOST_ROUNDS:
        raise PickleError(f"{value!r} is no number of rounds or epochs")
    return value


def _load(value: Any, most: int) -> Tensor:
    """Return a tensor of at most so many numbers."""
    if not isinstance(value, SavedTensor) or value.num_elements > most:
        raise PickleError("it has no tensor, or too long a one, where one belongs")
    return value.load()


def _rows(value: Any) -> Tensor:
    """Return a tensor of row ids."""
    found = _load(value, 10**9)
    if found.dtype != torch.int64:
        raise PickleError(f"it has row ids of {found.dtype}")
    return found


def _momentum(content: Mapping[str, Any]) -> dict[str, SavedTensor]:
    """Return the momentum of the parameters by our names; nothing where it is incomplete.

    The optimiser knows a parameter by the number that Python 2 gave it, and lists these numbers in
    the order of the parameters in the net.
    """
    optimiser = _texts(content.get("optimizer", {}))
    net = _texts(content.get("net", {}))
    names = [our_name(name) for name in net if not name.endswith(BUFFERS)]
    numbers = [
        number
        for group in optimiser.get("param_groups", [])
        for number in _texts(group).get("params", [])
    ]
    state = optimiser.get("state", {})
    if not isinstance(state, Mapping) or len(numbers) != len(names):
        return {}
    if not all(number in state for number in numbers):
        return {}
    buffers = [_texts(state[number]).get("momentum_buffer") for number in numbers]
    saved = [buffer for buffer in buffers if isinstance(buffer, SavedTensor)]
    return dict(zip(names, saved, strict=True)) if len(saved) == len(names) else {}
