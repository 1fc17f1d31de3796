"""Find hardware by its name, or in a file of benchmarks.hardware or benchmarks.device. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from and_dist.config.validation import build
from and_dist.planning.gpus import GPUS
from and_dist.planning.hardware import Hardware
from and_dist.utils.plain_files import read_at_most

MOST_BYTES = 1_000_000
"""The most bytes of a file of measured hardware, which has some thousands."""


def find_hardware(name: str) -> Hardware:
    """Return the hardware of a name in NAMED, or of a file that was measured.

    Raise ValueError for anything else.
    """
    if name in NAMED:
        return NAMED[name]
    if Path(name).suffix == ".json":
        return read_measured(Path(name))
    raise ValueError(
        f"gpu: {name} is not one of: {', '.join(NAMED)}; nor a file ending in .json, as "
        "`python -m benchmarks.hardware --json FILE` writes it"
    )


def read_measured(file: Path) -> Hardware:
    """Return the hardware in a file that was measured; raise ValueError if it holds none."""
    wanted = "right is a file that `python -m benchmarks.hardware --json FILE` wrote"
    try:
        content = json.loads(read_at_most(file, MOST_BYTES, may_be_link=True))
        measured = content["hardware"]
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); {wanted}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file} holds no measured hardware; {wanted}") from None
    try:
        return build(Hardware, measured)
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{file} is of another format ({first}); {wanted}") from None


def known_in(folder: Path) -> dict[str, Hardware]:
    """Return known hardware by name; what a folder has as measured takes the place of estimates."""
    measured = {file.stem: read_measured(file) for file in sorted(folder.glob("*.json"))}
    return {"cpu": measured["cpu"]} | GPUS | measured


FOLDER = Path(__file__).parent
"""The folder in which `python -m benchmarks.hardware --keep` writes cpu.json, or h100.json for an
H100; benchmarks/results has a copy."""
NAMED = known_in(FOLDER)
"""Known hardware by name."""
