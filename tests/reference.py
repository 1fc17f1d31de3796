"""The method in its plainest form: dense, one process, float64. Written from the equations alone.

Nothing here is fast or shares code with and_dist; it is what and_dist must equal.
N rows, B batch, D feature, K neighbours.
"""

from __future__ import annotations

from torch import Tensor


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
