"""Read manifest.json of prepared images, and compare the files beside it with it. No torch.

manifest.json has a seal (utils/seals.py) and the sha256 of every column. Images are not compared:
reading them all would take as long as training an epoch. What an earlier revision prepared has no
sums: its files are compared with their sizes, and with each other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from and_dist.utils.plain_files import open_regular, read_regular
from and_dist.utils.seals import unseal

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
"""The version of the manifest format that this program reads and writes."""
MANIFEST = "manifest.json"
SIDES = "heights", "widths"
"""Columns that every prepared set has."""
UNREADABLE = "manifest {} cannot be read: manifest.json"
AGAIN = "prepare the images again, or put the file back"
Count = Annotated[int, Field(ge=0, le=10**12)]


class About(BaseModel):
    """Hold what manifest.json says."""

    model_config = ConfigDict(strict=True, extra="allow")

    kind: Literal["files", "encoded", "pixels"]
    rows: Count
    content_hash: str
    root: str | None = None
    """The folder of the images, if they are files of their own."""
    files: tuple[str, ...] | None = None
    """The files that the images lie in, otherwise."""
    holds: dict[str, Count] = Field(default_factory=dict)
    """The size of every other file of the folder; earlier revisions did not list them."""
    sums: dict[str, str] = Field(default_factory=dict)
    """The sha256 of those of them that hold no images."""


def read_about(folder: Path) -> About:
    """Return what manifest.json says; raise ValueError for one that is damaged or not readable."""
    try:
        about = json.loads(read_regular(folder / MANIFEST))
        if not isinstance(about, dict):
            raise ValueError("it is no manifest of ours")
        if about.get("format") != FORMAT:
            raise ValueError(f"it is of format {about.get('format')}, this program reads {FORMAT}")
        return About.model_validate_json(json.dumps(unseal(about, MANIFEST)))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{UNREADABLE.format(folder)}: {where}: {first['msg'].lower()}") from None
    except RecursionError:
        raise ValueError(f"{UNREADABLE.format(folder)}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{UNREADABLE.format(folder)}: {error}") from None


def check_files(folder: Path, about: About) -> None:
    """Raise ValueError for a file of the columns that is lost or not as it was written."""
    for name, size in about.holds.items():
        if not is_column(name):
            continue
        try:
            descriptor, found = open_regular(folder / name)
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}; {AGAIN}") from None
        with os.fdopen(descriptor, "rb") as content:
            known = about.sums.get(name)
            if found != size:
                raise _of_another_size(name, found, size)
            if known is not None and hashlib.file_digest(content, "sha256").hexdigest() != known:
                raise ValueError(f"{name} is not as it was written; {AGAIN}")


def check_sizes(folder: Path, about: About) -> None:
    """Raise ValueError for a file of the columns that is here, and not as long as it was written.

    A plan may be made where manifest.json alone is.
    """
    for name, size in about.holds.items():
        if is_column(name) and (folder / name).exists():
            found = (folder / name).stat().st_size
            if found != size:
                raise _of_another_size(name, found, size)


def _of_another_size(name: str, found: int, size: int) -> ValueError:
    """Return the error about a file that is not as long as manifest.json says."""
    return ValueError(f"{name} has {found:,} bytes, and {size:,} by {MANIFEST}; {AGAIN}")


def refuse_without_manifest(folder: Path) -> None:
    """Raise ValueError if images were prepared in a folder that has lost its manifest.json."""
    if all((folder / f"{name}.npy").exists() for name in SIDES):
        raise ValueError(f"{folder} was prepared, and has lost its {MANIFEST}; {AGAIN}")


def is_column(name: str) -> bool:
    """Return whether a file of a manifest's folder is one of its columns, and holds no images."""
    return Path(name).name == name and name.endswith((".npy", ".json", "names.bin"))


def check_columns(columns: Mapping[str, NDArray[Any]], about: About, num_classes: int) -> None:
    """Raise ValueError where the columns do not fit each other, as those of no earlier revision."""
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iu" or len(column) != about.rows:
            raise ValueError(
                f"{name}.npy is {column.dtype} of shape {list(column.shape)}, and there are "
                f"{about.rows:,} rows; {AGAIN}"
            )
        least = {"labels": -1, "heights": 1, "widths": 1}.get(name, 0)
        if len(column) and column.min() < least:
            raise ValueError(f"{name}.npy has a value of {column.min()}; {AGAIN}")
    labels_N = columns.get("labels")
    if labels_N is not None and len(labels_N) and labels_N.max() >= num_classes:
        raise ValueError(
            f"labels.npy has a label of {labels_N.max()}, and classes.json has {num_classes} "
            f"classes; {AGAIN}"
        )
