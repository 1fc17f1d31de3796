"""End a command with an error message where the machine lacks a GPU.

The module imports torch alone, since part 1 of battery.sh runs without the kit.
"""

from __future__ import annotations

import torch


def require_gpu() -> None:
    """Exit with code 1 and a message if torch finds no NVIDIA GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no NVIDIA GPU on this machine, and this command is for one")
