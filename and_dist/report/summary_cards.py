"""Choose the figures that stand first on a page: what was learned, then what it cost. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from and_dist.report.charts import COUNT, LOSS, number
from and_dist.report.run_history import F64, History, Record, share_consistent, share_in
from and_dist.utils.formatting import format_seconds, percent


@dataclass(frozen=True)
class Card:
    """Hold one figure with its name and the sentences below it."""

    name: str
    value: str
    notes: tuple[str, ...] = ()


def summary_cards(history: History) -> dict[str, list[Card]]:
    """Return the cards by the title of their group, without groups that have none."""
    groups = {"Learned": _learned(history), "Cost": _costs(history)}
    return {title: cards for title, cards in groups.items() if cards}


def _learned(history: History) -> list[Card]:
    """Return the accuracies, the neighbourhoods and the loss, as far as they are known."""
    return [*_accuracies(history), *_neighbourhoods(history), *_loss(history)]


def _accuracies(history: History) -> list[Card]:
    """Return the newest accuracies; the first of them says what was gained over the baselines."""
    cards: list[Card] = []
    for name, key in (("kNN", "knn"), ("bank-kNN", "knn_bank"), ("linear probe", "probe_bank")):
        known = [
            (record, share)
            for record in history.records
            if record["event"] in ("epoch", "round")
            and (share := share_in(record, key)) is not None
        ]
        if not known:
            continue
        record, share = known[-1]
        gains = [] if cards else _gains(share, history)
        cards.append(Card(name, with_sign(share), (*gains, _when(history, record))))
    return cards


def _gains(share: float, history: History) -> list[str]:
    """Return how far an accuracy lies above or below each known baseline."""
    gains = []
    for key, name in reversed(history.names_of_baselines.items()):
        if (baseline := history.last("baselines").get(key)) is not None:
            article = "the " if key == "random" else ""
            points = round(100 * share, 1) - round(100 * baseline, 1)
            text = f"+{points:.1f} over" if points > 0 else f"{-points:.1f} below"
            gains.append(f"{text if points else 'equal to'} {article}{name}")
    return gains


def _when(history: History, record: Record) -> str:
    """Return the round or epoch after which a figure was measured."""
    round_index = record["round"]
    if record["event"] == "round":
        return f"after round {round_index}"
    epochs = history.config.epochs_of(round_index)
    return f"round {round_index}, after epoch {record['epoch'] + 1:,} of {epochs:,}"


def _neighbourhoods(history: History) -> list[Card]:
    """Return the anchors and, by labels or without them, what their neighbourhoods are like."""
    found = history.of("discovery")
    if not found:
        return []
    first, last = found[0], found[-1]
    earlier = first if len(found) > 1 else None
    count = sum(last["entropy"]["rows"])
    anchors = Card("anchors", f"{last['anchors']:,}", (f"of {count:,} images",))
    share = share_consistent(last)
    if share is not None:
        before = share_consistent(earlier) if earlier else None
        since = "" if before is None else f"{with_sign(before)} in round {first['round']}"
        notes = ("neighbours of their anchor's class", since)
        return [Card("consistency", with_sign(share), tuple(filter(None, notes))), anchors]
    entropy = last["entropy"]
    notes = (
        f"mean of all images, which lie between {entropy['low']:.3f} and {entropy['high']:.3f}",
        f"{earlier['entropy']['mean']:.3f} in round {earlier['round']}" if earlier else "",
    )
    mean = Card("entropy of neighbours", f"{entropy['mean']:.3f}", tuple(filter(None, notes)))
    return [anchors, mean]


def _loss(history: History) -> list[Card]:
    """Return the newest loss beside the first one."""
    losses = _known(history.steps["loss"])
    if not len(losses):
        return []
    first, last = number(losses[0], LOSS), number(losses[-1], LOSS)
    return [Card("loss", last, (f"{first} at the first logged step",))]


def _costs(history: History) -> list[Card]:
    """Return time, speed, memory and starts, as far as they are known."""
    cards, ended = [], history.of("round")
    if ended:
        place = f"to the end of round {ended[-1]['round']} of {history.config.last_round}"
        seconds = format_seconds(sum(r["seconds"] for r in ended))
        cards.append(Card("training time", seconds, (place,)))
    cards += _speed(history)
    waits, memory = (_known(history.steps[key]) for key in ("data_wait", "memory_mb"))
    if len(waits):
        share = float(np.median(waits))
        cards.append(Card("waiting for data", with_sign(share), ("of rank 0's time, median",)))
    if len(memory):
        gigabytes = f"{memory.max() / 1e3:,.1f} GB"
        cards.append(Card("memory", gigabytes, ("the most that rank 0 held",)))
    if len(history.starts) > 1:
        cards.append(Card("starts", f"{len(history.starts):,}", ("the run was resumed",)))
    return cards


def _speed(history: History) -> list[Card]:
    """Return the median speed: single steps are much faster or slower than a run."""
    speeds = history.steps["images_per_s"]
    if not len(_known(speeds)):
        return []
    notes = ["median of the logged steps"]
    if history.ranks_of_steps.max() > 1:
        notes.append(f"{number(np.median(_known(speeds / history.ranks_of_steps)), COUNT)} a rank")
    return [Card("images/s", number(np.median(_known(speeds)), COUNT), tuple(notes))]


def with_sign(share: float) -> str:
    """Return a share as a percentage with its sign, which stays in one line with it."""
    return f"{percent(share)}\u00a0%"


def _known(values: F64) -> F64:
    """Return the values that are finite."""
    return values[np.isfinite(values)]
