"""Name and recognise the pictures of a run's neighbourhoods, RUN/neighbourhoods. No torch.

Each discovery whose run has a tracker draws one. The trackers, which are written anew at every
start, read the pictures of earlier rounds here.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from and_dist.utils.owned_files import remove_file, starts_with
from and_dist.utils.plain_files import open_plain

FOLDER = "neighbourhoods"
SOFTWARE = "and-dist neighbourhoods"
"""The text of the PNG key Software, by which a picture is recognised."""
NAME = re.compile(r"round-(\d\d+)\.png")
is_picture = starts_with(rf"(?s)\x89PNG.{{0,64}}Software\x00{SOFTWARE}")


def picture_path(run: Path, round_index: int) -> Path:
    """Return the path of the picture of a round."""
    return run / FOLDER / f"round-{round_index:02}.png"


def read_picture(run: Path, round_index: int) -> bytes | None:
    """Return the PNG of a round, or None where there is none of ours."""
    path = picture_path(run, round_index)
    if not is_picture(path):
        return None
    with open_plain(path) as file:
        return file.read()


def keep_pictures(run: Path, rounds: Container[int]) -> None:
    """Remove the pictures of all rounds but these."""
    for path in (run / FOLDER).glob("round-*.png"):
        found = NAME.fullmatch(path.name)
        if found is not None and int(found.group(1)) not in rounds:
            remove_file(path, is_picture)
