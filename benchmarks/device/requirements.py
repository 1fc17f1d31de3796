"""End a command with one sentence where the machine lacks what it needs; part 1 imports this."""

from __future__ import annotations

import torch


def require_gpu() -> None:
    """Exit with status 1 and a message if torch sees no NVIDIA GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no NVIDIA GPU on this machine, and this command is for one")
