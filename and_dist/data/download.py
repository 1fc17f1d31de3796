"""Published small sets through torchvision's downloaders, which check their sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _cifar10(folder: Path) -> Path:
    from torchvision import datasets

    datasets.CIFAR10(folder, download=True)
    return folder / "cifar-10-batches-py"


def _cifar100(folder: Path) -> Path:
    from torchvision import datasets

    datasets.CIFAR100(folder, download=True)
    return folder / "cifar-100-python"


def _svhn(folder: Path) -> Path:
    from torchvision import datasets

    for split in ("train", "test"):
        datasets.SVHN(folder, split, download=True)
    return folder


def _fashion_mnist(folder: Path) -> Path:
    from torchvision import datasets

    datasets.FashionMNIST(folder, download=True)
    return folder / "FashionMNIST" / "raw"


DOWNLOADS: dict[str, Callable[[Path], Path]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "fashion_mnist": _fashion_mnist,
}


def download(name: str, folder: Path) -> Path:
    """Fetch a set into a folder, or find it there; the path `prepare` takes."""
    if name not in DOWNLOADS:
        raise ValueError(f"--download {name} is not one of: {', '.join(DOWNLOADS)}")
    try:
        return DOWNLOADS[name](folder)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"downloading {name} failed: {error}") from None
