"""The method in its plainest form: dense, one process, float64. Written from the equations alone.

Nothing here is fast or shares code with and_dist; it is what and_dist must equal.
N rows, B batch, D feature, K neighbours.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor, nn


def loss(
    features_BD: Tensor, rows_B: Tensor, neighbours_BK: Tensor, bank_ND: Tensor, temperature: float
) -> Tensor:
    """Eq. 7: mean of -log sum of p over {i} and its neighbours; rows of -1 do not count."""
    total, count = features_BD.new_zeros(()), 0
    for x_D, row, neighbours_K in zip(features_BD, rows_B.tolist(), neighbours_BK, strict=True):
        if row < 0:
            continue
        p_N = (bank_ND @ x_D / temperature).softmax(dim=0)
        positives = [row, *(n for n in neighbours_K.tolist() if n >= 0)]
        total = total - p_N[positives].sum().log()
        count += 1
    return total / count


def updated_bank(
    bank_ND: Tensor, rows_B: Tensor, features_BD: Tensor, update_rate: float, renormalise: bool
) -> Tensor:
    """Eq. 8, once a row: its first feature in the batch."""
    bank_ND = bank_ND.clone()
    seen = set()
    for row, x_D in zip(rows_B.tolist(), features_BD, strict=True):
        if row < 0 or row in seen:
            continue
        seen.add(row)
        new_D = (1 - update_rate) * bank_ND[row] + update_rate * x_D
        bank_ND[row] = new_D / new_D.norm() if renormalise else new_D
    return bank_ND


def entropy(bank_ND: Tensor, temperature: float) -> Tensor:
    """Eq. 5: -sum_j p_ij log p_ij over the whole bank, the own row included."""
    log_p_NN = (bank_ND @ bank_ND.T / temperature).log_softmax(dim=1)
    return -(log_p_NN.exp() * log_p_NN).sum(dim=1)


def anchors(entropy_N: Tensor, count: int) -> list[int]:
    """The rows of lowest entropy, ties by the lower row."""
    return sorted(range(len(entropy_N)), key=lambda row: (entropy_N[row].item(), row))[:count]


def nearest(bank_ND: Tensor, row: int, num_neighbours: int) -> list[int]:
    """The k nearest rows by cosine, itself left out by index, ties by the lower row."""
    unit_ND = bank_ND / bank_ND.norm(dim=1, keepdim=True)
    # Term by term, so that equal rows give equal sums.
    cosine_N = (unit_ND * unit_ND[row]).sum(dim=1)
    others = [other for other in range(len(bank_ND)) if other != row]
    return sorted(others, key=lambda other: (-cosine_N[other].item(), other))[:num_neighbours]


def knn_votes(
    query_D: Tensor, bank_ND: Tensor, labels_N: Tensor, num_neighbours: int, temperature: float
) -> dict[int, float]:
    """class -> sum of exp(cosine / tau) over the K nearest rows."""
    unit_ND = bank_ND / bank_ND.norm(dim=1, keepdim=True)
    cosine_N = (unit_ND * (query_D / query_D.norm())).sum(dim=1)
    order = sorted(range(len(bank_ND)), key=lambda row: (-cosine_N[row].item(), row))
    votes: dict[int, float] = {}
    for row in order[:num_neighbours]:
        label = int(labels_N[row])
        votes[label] = votes.get(label, 0.0) + float((cosine_N[row] / temperature).exp())
    return votes


def nce_loss(
    features_BD: Tensor,
    rows_B: Tensor,
    negatives_BM: Tensor,
    bank_ND: Tensor,
    temperature: float,
    z: float,
) -> Tensor:
    """Mean of -log h(i) - sum of log(1 - h(j)), h = p / (p + M / N), p = exp(x . m / tau) / z."""
    total, count = features_BD.new_zeros(()), 0
    for x_D, row, negatives_M in zip(features_BD, rows_B.tolist(), negatives_BM, strict=True):
        if row < 0:
            continue
        chance = len(negatives_M) / len(bank_ND)
        p_N = (bank_ND @ x_D / temperature).exp() / z
        h_N = p_N / (p_N + chance)
        total = total - h_N[row].log() - sum((1 - h_N[j]).log() for j in negatives_M.tolist())
        count += 1
    return total / count


def nce_normaliser(
    features_BD: Tensor,
    rows_B: Tensor,
    negatives_BM: Tensor,
    bank_ND: Tensor,
    temperature: float,
) -> float:
    """N times the mean of exp(x . m / tau) over all negatives of the batch."""
    drawn = [
        (bank_ND[j] @ x_D / temperature).exp().item()
        for x_D, row, negatives_M in zip(features_BD, rows_B.tolist(), negatives_BM, strict=True)
        for j in negatives_M.tolist()
        if row >= 0
    ]
    return len(bank_ND) * sum(drawn) / len(drawn)


def best_assignment(cosine_UU: Tensor) -> tuple[int, ...]:
    """The permutation of the largest sum, of all there are."""
    size = range(len(cosine_UU))
    return max(permutations(size), key=lambda p: sum(cosine_UU[at, p[at]].item() for at in size))


def weighted_cross_entropy(
    features_BD: Tensor,
    rows_B: Tensor,
    labels_N: Tensor,
    weights_C: Tensor,
    classifier: nn.Linear,
    temperature: float,
) -> Tensor:
    """Mean of -w log p(label) over the rows that are none of -1."""
    terms = []
    for x_D, row in zip(features_BD, rows_B.tolist(), strict=True):
        if row >= 0:
            p_C = classifier(x_D / temperature).softmax(dim=0)
            terms.append(-weights_C[labels_N[row]] * p_C[labels_N[row]].log())
    return torch.stack(terms).mean()


def whitened(rows_ND: Tensor, num_components: int) -> Tensor:
    """Unit rows whose components, before, have variance 1 and are uncorrelated; signs are free."""
    centred_ND = rows_ND - rows_ND.mean(dim=0)
    left_NE, _, _ = torch.linalg.svd(centred_ND, full_matrices=False)
    scores_NE = left_NE[:, :num_components]
    return scores_NE / scores_NE.norm(dim=1, keepdim=True)


def lloyd(rows_NE: Tensor, centres_CE: Tensor, iterations: int) -> list[int]:
    """Spherical k-means by loops, for centres that never lose all their rows."""
    for _ in range(iterations):
        clusters = [int((centres_CE @ row_E).argmax()) for row_E in rows_NE]
        for c in range(len(centres_CE)):
            sum_E = sum(row_E for row_E, at in zip(rows_NE, clusters, strict=True) if at == c)
            centres_CE[c] = sum_E / sum_E.norm()
    return [int((centres_CE @ row_E).argmax()) for row_E in rows_NE]
