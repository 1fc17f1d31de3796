"""Find the mistakes of kNN by the bank: test images close to another class, or far from all.

N all rows, Q test images, K neighbours, D feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from and_dist.checkpoint.bank_reader import StoredBank, search_bank
from and_dist.config.schema import EvaluationConfig
from and_dist.evaluation.knn import vote

SHOWN = 12
"""The number of mistakes of each kind that are shown."""
NEAREST = 3
"""The number of training images that are shown beside a mistake."""


@dataclass(frozen=True)
class Mistake:
    """Describe a test image that kNN puts into the wrong class."""

    row: int
    """The row of the test image."""
    label: int
    predicted: int
    similarity: float
    """The cosine to the nearest training image."""
    nearest: tuple[int, ...]
    """The rows of the nearest training images."""


@dataclass(frozen=True)
class Mistakes:
    """Hold the mistakes that a page shows, and how many there are."""

    nearest: tuple[Mistake, ...]
    """The mistakes that are closest to a training image, closest first."""
    farthest: tuple[Mistake, ...]
    """The mistakes that are farthest from all training images, farthest first; none of them is
    among the nearest."""
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
    """Classify test images by the votes of `and-dist evaluate --knn` and return the mistakes."""
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
    farthest = tuple(map(describe, by_similarity[SHOWN:][: -SHOWN - 1 : -1]))
    return Mistakes(nearest, farthest, len(wrong), len(rows))
