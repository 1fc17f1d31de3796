"""Do what somebody does in the first hour, with images of their own, in an empty environment.

python -m tests.end_to_end.first_hour [--keep docs/first-hour.md] does the whole of it and shows, or
keeps, what is printed; the test of this name does it with shorter rounds.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from and_dist.data.shapes import draw_shapes
from and_dist.data.stores import Box, MemoryStore
from tests.pictures import cut_pixels, encode, write

NUM_IMAGES = 240
ODD_NAMES = ("my photo (1).jpg", "été à la mer.png", "写真.jpg", "🐈.jpg", "a;b&c$d.jpg", "-x.jpg")
SHORT = ("curriculum.rounds=1", "curriculum.epochs=2", "run.device=cpu")
"""Overrides that make a run take seconds."""
SHOWN = ("curriculum.rounds=2", "curriculum.epochs=30", "run.device=cpu")
"""Overrides of the page: about a minute for each run, and too little to learn much."""


@dataclass(frozen=True)
class Said:
    """Hold a command as it is typed, how it ended, and what it printed."""

    command: str
    status: int
    output: str


def make_photos(folder: Path, is_sorted: bool) -> None:
    """Fill a folder with images as people have them: with strays, odd names and one bad file.

    They are the drawn shapes, at the sizes of photographs; sorted ones lie in class folders.
    """
    drawn = draw_shapes("train", NUM_IMAGES)
    store = drawn.index.store
    assert isinstance(store, MemoryStore)
    assert drawn.labels_N is not None
    for row, label in enumerate(drawn.labels_N.tolist()):
        side = 160 + 8 * (row % 12)
        image = Image.fromarray(store.fetch(row, Box(0, 0, 32, 32))).resize((side, side - 40))
        usual = f"IMG_{row:04}.{('jpg', 'png')[row % 2]}"
        name = ODD_NAMES[row] if row < len(ODD_NAMES) else usual
        place = folder / drawn.class_names[label] if is_sorted else folder
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
    first = next(folder.rglob("IMG_*.jpg")).parent
    write(first / "animation.gif", encode(1, "GIF", size=(90, 60)))
    write(first / "broken.jpg", encode(2, "JPEG", size=(300, 200)))
    cut_pixels(first / "broken.jpg", 0.1)
    for stray in ("notes.txt", "Thumbs.db", ".DS_Store", "IMG_0001.xmp", "clip.mov"):
        write(folder / stray, "no image")
    (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")


def run(folder: Path, *arguments: str, site: Path | None = None) -> Said:
    """Run `and-dist` in a folder, with nothing in the environment but what a shell needs."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    environment |= {"PYTHONPATH": str(site or Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-m", "and_dist", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    typed = " ".join(
        f"'{word}'" if re.search(r"[^\w./=,\[\]-]", word) else word for word in arguments
    )
    return Said(f"and-dist {typed}", done.returncode, done.stdout)


def first_hour(folder: Path, *overrides: str, site: Path | None = None) -> list[Said]:
    """Return all that is done and said, from nothing to the pictures."""
    make_photos(folder / "photos", is_sorted=False)
    make_photos(folder / "sorted", is_sorted=True)

    def do(*arguments: str) -> Said:
        return run(folder, *arguments, site=site)

    said = [do("train"), do("init", "photos")]
    write(folder / "mine.yaml", said[-1].output)
    return [
        *said,
        do("train", "photos", *overrides),
        do("train", "photos", *overrides),
        do("evaluate", "runs/photos", "--knn"),
        do(
            "neighbours",
            "runs/photos",
            "photos/🐈.jpg",
            "photos/IMG_0100.jpg",
            "--sheet",
            "sheet.png",
        ),
        do("report", "runs/photos"),
        do("train", "sorted", *overrides),
        do("evaluate", "runs/sorted", "--knn"),
        do("report", "runs/sorted", "--compare", "runs/photos"),
        do("export", "runs/sorted", "--out", "encoder"),
        do("embed", "runs/sorted", "photos", "--out", "features.npy", "--bad-images", "skip"),
    ]


ABOUT_THE_PAGE = f"""# The first hour, as it is printed

`python -m tests.end_to_end.first_hour --keep docs/first-hour.md` makes this page: two folders of
{NUM_IMAGES} images each, one flat and one sorted into class folders, with strays, odd names, a loop
of links, a pipe and a file that is cut short. [own-images.md](own-images.md) explains the steps.
The rounds are short, so that the page takes minutes, and too short to learn much.
"""


def as_page(said: list[Said], folder: Path) -> str:
    """Return all that was said as a page, without colours and the path of the folder."""
    parts = [ABOUT_THE_PAGE]
    for one in said:
        output = re.sub(r"\x1b\[[\d;]*m", "", one.output).replace(f"{folder}/", "")
        lines = [line.rstrip() for line in output.splitlines()]
        lines += [f"(exit code {one.status})"] if one.status else []
        parts.append("\n".join(["```text", f"$ {one.command}", *lines, "```\n"]))
    return "\n".join(parts)


def main() -> None:
    """Do the first hour in a temporary folder, and show or keep what is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="page to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = as_page(first_hour(Path(folder), *SHOWN), Path(folder))
    if given.keep:
        given.keep.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
