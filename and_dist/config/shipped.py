"""Find the configs that are shipped: beside the packages in a checkout, within them in a wheel."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from and_dist.config.validation import clip
from and_dist.utils.formatting import as_text

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")


def is_of_the_paper(file: Path) -> bool:
    """Return whether a file is one of the shipped experiments of the paper, or a base of them."""
    folder = file.resolve().parent
    return any(folder in (place / "paper", place / "base") for place in PLACES)


def find_config(given: str | Path) -> Path:
    """Return the file of a config, which is a path, or the bare name of a shipped one.

    Raise ValueError for a name that is neither.
    """
    path = Path(given)
    # os.path takes a name that no file can have for one of no file, and pathlib raises OSError.
    if path.suffix or os.path.exists(path) or path.is_absolute():
        return path
    found = next((file for file in _candidates(path) if os.path.isfile(file)), None)
    if found is None:
        known = shipped_names()
        name = as_text(clip(str(given)))
        near = get_close_matches(name, known, n=3) or known
        raise ValueError(
            f"there is no config {name}: it is neither a file nor one of the {len(known)} shipped "
            f"ones, such as {', '.join(near[:5])}"
        )
    return found


def shipped_names() -> list[str]:
    """Return the names of all shipped configs, such as demo and paper/cifar10-alexnet."""
    folder = next((place for place in PLACES if place.is_dir()), None)
    if folder is None:
        return []
    files = (file.relative_to(folder) for file in folder.rglob("*.yaml"))
    return sorted(str(file.with_suffix("")) for file in files if file.parts[0] in NAMED)


NAMED = ("debug.yaml", "demo.yaml", "paper")
"""The files and folders of configs that train a run by themselves."""


def _candidates(name: Path) -> list[Path]:
    """Return where a shipped config of a name may lie."""
    return [place / f"{name}.yaml" for place in PLACES if ".." not in name.parts]
