"""Read and search the bank of a checkpoint on the disk, as far as is asked for.

Q queries, S rows of one part, D feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from and_dist.checkpoint.tensor_files import BANK, TensorFiles
from and_dist.method.neighbour_search import Nearest, ShardSearch, best_of

ROWS_PER_READ = 1 << 16


class StoredBank:
    """Reads the files of all ranks as one bank; nothing is held in memory."""

    def __init__(self, checkpoint: Path) -> None:
        """Find the files; raise ValueError where there is no bank."""
        self._pieces = TensorFiles(checkpoint).pieces(BANK)
        if not self._pieces:
            files = sorted(file.name for file in checkpoint.glob("*.safetensors"))
            raise ValueError(
                f"checkpoint {checkpoint} is damaged or gone: there is no bank in "
                f"{', '.join(files[:3]) or 'it'}"
            )
        self.num_rows = self._pieces[-1].stop

    def blocks(self, size: int = ROWS_PER_READ) -> Iterator[tuple[int, Tensor]]:
        """Yield (start, [S, D] as float32) of all rows, in their order."""
        for piece in self._pieces:
            for at in range(0, piece.stop - piece.start, size):
                # Opened for each block: what was read stays mapped as long as the file is open.
                with safe_open(piece.file, "pt") as content:
                    rows_SD = content.get_slice(BANK)[at : at + size].float().clone()
                yield piece.start + at, rows_SD

    def take(self, rows_Q: Tensor) -> Tensor:
        """Return [Q, D] as float32, of any rows in any order."""
        found: dict[int, Tensor] = {}
        wanted = sorted(set(rows_Q.tolist()))
        for piece in self._pieces:
            with safe_open(piece.file, "pt") as content:
                stored = content.get_slice(BANK)
                for row in [r for r in wanted if piece.start <= r < piece.stop]:
                    found[row] = stored[row - piece.start].float()
        return torch.stack([found[row] for row in rows_Q.tolist()])


def search_bank(
    bank: StoredBank, queries_QD: Tensor, count: int, own_rows_Q: Tensor | None = None
) -> Nearest:
    """Return the nearest rows of a stored bank, without the rows that ask."""
    if own_rows_Q is None:
        own_rows_Q = torch.full((len(queries_QD),), -1)
    found = [
        ShardSearch(rows_SD, start, count).nearest(queries_QD, own_rows_Q)
        for start, rows_SD in bank.blocks()
    ]
    return best_of(found, count)
