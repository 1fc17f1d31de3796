"""Attack the program with sources of images that are hostile or odd."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

from tests.attack.campaign import Kind, Trial
from tests.attack.known_sources import KNOWN
from tests.attack.source_layouts import FOLDERS, LAYOUTS, shard
from tests.attack.source_pieces import BEND, REPLACE, base256, odd_jpegs, tar_block, tar_file
from tests.attack.source_trials import EMBED, OPTIONS, PREPARE, TRAIN, Command, trial
from tests.pictures import encode, files_of, write

ODD_NAMES = (
    b"a\nb",
    b"caf\xe9",
    b"\x1b[31mred",
    b"-x",
    b" ",
    b"a" * 240,
    b"$(touch x)",
    b"\xff\xfe",
    "é".encode(),
    b"[b]rich[/b]",
    b"a,b;c",
    b".hidden",
    b"x.jpg",
    b"CON",
    b"%s%n",
)


def odd_names(folder: Path, chance: random.Random) -> None:
    """Lay images in files and folders of odd names."""
    base = os.fsencode(folder)
    names = chance.sample(ODD_NAMES, 4)
    for at, name in enumerate(names):
        inside = base if chance.random() < 0.5 else os.path.join(base, chance.choice(ODD_NAMES))
        write(Path(os.fsdecode(os.path.join(inside, name + b".jpg"))), encode(at))


def odd_folders(folder: Path, chance: random.Random) -> None:
    """Lay images in loops of links, or very deep."""
    LAYOUTS["class folders"](folder)
    if chance.random() < 0.5:
        (folder / "a" / "again").symlink_to("..")
        (folder / "c").symlink_to(chance.choice(["c", "a", "/proc/self", "/dev", "nowhere"]))
        return
    here = os.open(folder, os.O_RDONLY)
    for _ in range(chance.choice([50, 1500])):
        os.mkdir("d" * 9, dir_fd=here)
        here, above = os.open("d" * 9, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)


def odd_images(folder: Path, chance: random.Random) -> None:
    """Lay some images that few programs write."""
    LAYOUTS["flat"](folder)
    images = odd_jpegs()
    for name in chance.sample(sorted(images), chance.choice([1, 2, 4])):
        write(folder / name, images[name])


def odd_members(folder: Path, chance: random.Random) -> None:
    """Lay a tar with members of all types and with odd names."""
    kinds = (*b"012345679xgLKSVDN\0",)
    names = (
        "a.jpg",
        "b.cls",
        "../c.jpg",
        "/d.jpg",
        "e/" * 60 + "e.jpg",
        "caf\udce9.jpg",
        "a\nb.png",
    )
    chosen = chance.sample(names, 4)
    members = {name: (bytes([chance.choice(kinds)]), encode(0)) for name in chosen}
    write(folder / "train.tar", tar_file(members | {"z.jpg": (b"0", encode(1))}))


def absurd_sizes(folder: Path, chance: random.Random) -> None:
    """Lay a tar whose members have sizes of any value."""
    sizes = (base256(chance.choice([-1, -512, 2**63, 2**94, 5 * 10**9])), b"77777777777\0", b"abc")
    blocks = [
        tar_block(chance.choice([b"a.jpg", b"a.cls"]), chance.choice(sizes), bytes([kind]))
        for kind in chance.sample(b"0xgLS57", 2)
    ]
    write(folder / "train.tar", shard()[:2048] + b"".join(blocks) + shard())


SPECIAL = (odd_names, odd_folders, odd_images, odd_images, odd_members, absurd_sizes)


def draw(chance: random.Random) -> Trial:
    """Draw a source of any layout, what is wrong with it, and what reads it."""
    if chance.random() < 0.4:
        special, seed = chance.choice(SPECIAL), chance.getrandbits(32)
        layout = "tar shards" if special in (odd_members, absurd_sizes) else "flat"
        commands = draw_commands(layout, chance)
        return trial(
            f"{special.__name__} {seed}",
            lambda folder: special(folder, random.Random(seed)),
            commands,
        )
    layout, seed = chance.choice(list(LAYOUTS)), chance.getrandbits(32)
    how = chance.choice([*REPLACE, *BEND, *BEND])

    def lay(folder: Path) -> None:
        LAYOUTS[layout](folder)
        again = random.Random(seed)
        path = again.choice(files_of(folder))
        if how in REPLACE:
            REPLACE[how](path)
        else:
            path.write_bytes(BEND[how](path.read_bytes(), again))

    return trial(f"{layout}, {how}, {seed}", lay, draw_commands(layout, chance))


def draw_commands(layout: str, chance: random.Random) -> Sequence[Command]:
    """Draw what reads a source: training on it, or on what was prepared of it, or a run's verb."""
    if layout in FOLDERS:
        skip = chance.choice([(), ("data.bad_images=skip",), ("data.cache_gb=0.1",)])
        source = ("data.train=photos/train",) if layout == "train and val" else ()
        policy = chance.choice([(), ("--bad-images", "skip")])
        choices = [(*TRAIN, *source, *skip)], [(*EMBED, *policy)]
        if chance.random() < 0.6:
            return chance.choice(choices)
    prepare = (*PREPARE, *chance.choice(OPTIONS))
    if layout in ("tar shards", "class folders") and chance.random() < 0.5:
        return [prepare, (*TRAIN, "data.train=out/train")]
    return [prepare]


KIND = Kind("sources", 80, KNOWN, draw)
