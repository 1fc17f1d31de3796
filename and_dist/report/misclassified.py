"""Where kNN by the bank is wrong: test images that lie close to another class, or far from all.

Q test images, K neighbours, D feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from and_dist.checkpoint.bank_reader import StoredBank, search_bank
from and_dist.config.schema import EvaluationConfig
from and_dist.evaluation.knn import vote

SHOWN = 12
"""Mistakes of either kind."""
NEAREST = 3
"""Training images shown beside one."""


@dataclass(frozen=True)
class Mistake:
    row: int
    """Of the test images."""
    label: int
    predicted: int
    similarity: float
    """To the nearest training image."""
    nearest: tuple[int, ...]


@dataclass(frozen=True)
class Mistakes:
    nearest: tuple[Mistake, ...]
    """Close to what they were taken for."""
    farthest: tuple[Mistake, ...]
    num_wrong: int
    num_images: int


def find_mistakes(
    rows: list[int],
    queries_QD: Tensor,
    labels_Q: Tensor,
    train_labels_N: Tensor,
    bank: StoredBank,
    settings: EvaluationConfig,
) -> Mistakes:
    """By the votes of and-dist evaluate --knn."""
    found = search_bank(bank, queries_QD, min(settings.knn, bank.num_rows))
    num_classes = int(torch.cat([train_labels_N, labels_Q]).max()) + 1
    votes_QC = vote(found, train_labels_N, num_classes, settings.knn_temperature)
    predicted_Q = votes_QC.argmax(dim=1)
    wrong = (predicted_Q != labels_Q).nonzero().flatten().tolist()
    by_similarity = sorted(wrong, key=lambda at: -float(found.similarity_QK[at, 0]))

    def describe(at: int) -> Mistake:
        return Mistake(
            rows[at],
            int(labels_Q[at]),
            int(predicted_Q[at]),
            float(found.similarity_QK[at, 0]),
            tuple(row for row in found.rows_QK[at, :NEAREST].tolist() if row >= 0),
        )

    nearest = tuple(map(describe, by_similarity[:SHOWN]))
    farthest = tuple(map(describe, by_similarity[::-1][:SHOWN]))
    return Mistakes(nearest, farthest, len(wrong), len(rows))
