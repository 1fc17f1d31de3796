"""Download small published sets by torchvision, which verifies their checksums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from and_dist.utils.folder_names import Named, entries_of
from and_dist.utils.owned_files import NotOursError, check_writable
from and_dist.utils.owned_folders import NewFolder

DOWNLOADED = Named(
    r"cifar-10-python\.tar\.gz|cifar-100-python\.tar\.gz|cifar-10-batches-py/[\w.]+|"
    r"cifar-100-python/[\w.~]+|(train|test)_32x32\.mat|FashionMNIST/raw/[\w.-]+|"
    r"(cifar-10-batches-py|cifar-100-python|FashionMNIST|FashionMNIST/raw)/"
)
"""Names of all files that torchvision's downloaders leave in their folder."""
MOST_BYTES = 10**9
"""The most bytes of a file; the largest one is SVHN's training set with 182 MB."""


def _cifar10(folder: Path, is_fetched: bool) -> Path:
    """Download or open CIFAR-10, and return the folder that `prepare` takes."""
    from torchvision import datasets

    datasets.CIFAR10(folder, download=is_fetched)
    return folder / "cifar-10-batches-py"


def _cifar100(folder: Path, is_fetched: bool) -> Path:
    """Download or open CIFAR-100, and return the folder that `prepare` takes."""
    from torchvision import datasets

    datasets.CIFAR100(folder, download=is_fetched)
    return folder / "cifar-100-python"


def _svhn(folder: Path, is_fetched: bool) -> Path:
    """Download or open SVHN, and return the folder that `prepare` takes."""
    from torchvision import datasets

    for split in ("train", "test"):
        datasets.SVHN(folder, split, download=is_fetched)
    return folder


def _fashion_mnist(folder: Path, is_fetched: bool) -> Path:
    """Download or open Fashion-MNIST, and return the folder that `prepare` takes."""
    from torchvision import datasets

    datasets.FashionMNIST(folder, download=is_fetched)
    return folder / "FashionMNIST" / "raw"


DOWNLOADS: dict[str, Callable[[Path, bool], Path]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "fashion_mnist": _fashion_mnist,
}
"""Functions of (folder, whether to download) by the name of the set."""


def _refuse_long(folder: Path) -> None:
    """Raise ValueError for a file that no download has, whose checksum would take hours."""
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes")


def download(name: str, folder: Path) -> Path:
    """Download a set into a folder, or find it there; return the path that `prepare` takes.

    A folder that exists is only read. A set is downloaded into a folder aside, which gets its name
    once the set is complete. Raise ValueError for an unknown name, NotOursError if the folder holds
    anything but a whole download, and RuntimeError if the download fails.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"--download {name} is not one of: {', '.join(DOWNLOADS)}")
    if folder.exists():
        try:
            _refuse_long(folder)
            return DOWNLOADS[name](folder, False)
        except Exception:  # torchvision may raise anything at files it did not expect
            found = ", ".join(entries_of(folder)[:3]) or "nothing" if folder.is_dir() else "a file"
            raise NotOursError(
                f"folder {folder} is there, and is no whole download of {name}, it holds {found}: "
                "move it away, or choose another --out"
            ) from None
    check_writable(folder, f"--out {folder.parent}")
    building = NewFolder(folder, lambda _: None, DOWNLOADED)
    try:
        DOWNLOADS[name](building.path, True)
        building.publish()
    except (OSError, RuntimeError) as error:
        building.discard()
        raise RuntimeError(f"downloading {name} failed: {error}") from None
    except BaseException:
        building.discard()
        raise
    return DOWNLOADS[name](folder, False)
