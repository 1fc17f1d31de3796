"""Take up a run of the published code where it was saved: `bank.weights`.

N all rows, D feature, S rows of this shard, A anchors, K neighbours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from and_dist.config.schema import Config
from and_dist.method.neighbour_table import Neighbourhoods, check_neighbours
from and_dist.models.published_run import PublishedRun, read_published_run
from and_dist.models.torch_files import SavedTensor
from and_dist.training.state import Progress, RunState

SLACK = 1e-3
"""The most by which two sums over the same neighbours differ; the published code sums in
float32."""


def check_published(config: Config, labels_N: NDArray[np.int64] | None, num_rows: int) -> None:
    """Raise ValueError unless the run can take up what `bank.weights` names.

    With labels, the images have to be in the order that it was trained with: neighbours have their
    anchor's class as often as they had there.
    """
    if config.bank.weights is None:
        return
    where, dim = f"bank.weights={config.bank.weights}", config.encoder.feature_dim
    run = read_published_run(Path(config.bank.weights))
    if run.bank.size != (num_rows, dim):
        raise ValueError(
            f"{where} has a bank of {run.bank.size[0]:,} rows of {run.bank.size[1]} numbers, and "
            f"the run has {num_rows:,} images and encoder.feature_dim={dim}"
        )
    if run.round_index > config.last_round:
        raise ValueError(
            f"{where} was saved in round {run.round_index}, and this run ends with round "
            f"{config.last_round}: method=and curriculum.rounds={run.round_index} or more goes on"
        )
    if len(run.anchors_A):
        _check_table(run, where, config, num_rows)
        _check_order(run, where, labels_N)


def _check_table(run: PublishedRun, where: str, config: Config, num_rows: int) -> None:
    """Raise ValueError unless the neighbourhoods are of the run's rows and size."""
    count = run.neighbours_AK.shape[1]
    if count != config.curriculum.neighbours:
        raise ValueError(
            f"{where} has {count} neighbours of an anchor, and curriculum.neighbours="
            f"{config.curriculum.neighbours}"
        )
    if len(run.entropy_N) != num_rows or not _are_rows(run.anchors_A, num_rows):
        raise ValueError(f"{where} has anchors or entropies of other rows than its bank's")
    try:
        check_neighbours(run.neighbours_AK, run.anchors_A, num_rows)
    except RuntimeError as error:
        raise ValueError(f"{where}: {error}") from None


def _are_rows(rows_A: torch.Tensor, num_rows: int) -> bool:
    """Return whether these are distinct rows of so many."""
    is_inside = bool((rows_A >= 0).all() and (rows_A < num_rows).all())
    return is_inside and len(rows_A.unique()) == len(rows_A)


def _check_order(run: PublishedRun, where: str, labels_N: NDArray[np.int64] | None) -> None:
    """Raise ValueError if labels tell that the images are in another order."""
    if labels_N is None:
        return
    anchors_A, neighbours_AK = run.anchors_A.numpy(), run.neighbours_AK.numpy()
    here = float((labels_N[anchors_A][:, None] == labels_N[neighbours_AK]).mean())
    if not abs(here - run.consistency) <= SLACK:
        raise ValueError(
            f"{where} was trained on other images, or on these in another order: "
            f"{100 * here:.1f} % of its neighbours have their anchor's class here, and "
            f"{100 * run.consistency:.1f} % had it there; it takes torchvision's order"
        )


def take_up(state: RunState, config: Config) -> str:
    """Fill the bank, the neighbourhoods and the momentum, and go to the place of `bank.weights`.

    Return a line that tells what was taken up.
    """
    run, bank = read_published_run(Path(config.bank.weights or "")), state.bank
    start = bank.start
    bank.features_SD.copy_(run.bank.load()[start : start + len(bank.features_SD)])
    bank.round_again()
    if len(run.anchors_A):
        state.objective.neighbourhoods = _table_of(run, state.neighbourhoods)
    has_momentum = _take_momentum(state, run.momentum)
    epochs = min(run.epochs, config.epochs_of(run.round_index))
    state.progress = Progress(run.round_index, epochs, is_begun=True)
    return (
        f"bank{', momentum' if has_momentum else ''} and {len(run.anchors_A):,} neighbourhoods of "
        f"{run.file}, after {run.epochs} epochs of round {run.round_index}"
    )


def _table_of(run: PublishedRun, before: Neighbourhoods) -> Neighbourhoods:
    """Return their neighbourhoods as a table like the one before."""
    device = before.neighbours_NK.device
    neighbours_NK = torch.full_like(before.neighbours_NK, -1)
    neighbours_NK[run.anchors_A.to(device)] = run.neighbours_AK.to(device)
    # The published code searches exactly.
    return Neighbourhoods(neighbours_NK, run.entropy_N.to(device), run.anchors_A.to(device), 1.0)


def _take_momentum(state: RunState, momentum: dict[str, SavedTensor]) -> bool:
    """Load the momentum of all parameters of the encoder; return False if it does not fit."""
    parameters = dict(state.encoder.named_parameters())
    fits = momentum.keys() == parameters.keys() and all(
        momentum[name].size == tuple(parameter.shape)
        and "momentum_buffer" in state.optimiser.state[parameter]
        for name, parameter in parameters.items()
    )
    for name, parameter in parameters.items() if fits else ():
        loaded = momentum[name].load().to(parameter.device)
        state.optimiser.state[parameter]["momentum_buffer"] = loaded
    return fits
