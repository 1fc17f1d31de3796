"""Sources that broke an earlier revision, or would: what they state has no end, or no room."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tests.attack.source_layouts import DEVKIT, LAYOUTS, idx, shard
from tests.attack.source_pieces import (
    REPLACE,
    base256,
    bomb,
    device,
    fifo,
    huge_image,
    huge_png,
    png_header,
    sparse,
    tar_block,
    tar_file,
)
from tests.attack.source_trials import DECODING, EMBED, HUGE, NEAR, PREPARE, TRAIN, trial
from tests.foreign_files.child import run_command
from tests.pictures import encode, save_pictures, write


def over(name: str, spoil: Callable[[Path], object], layout: str) -> Callable[[Path], None]:
    """Return a lay that spoils one file of a whole source."""

    def lay(folder: Path) -> None:
        LAYOUTS[layout](folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        spoil(folder / name)

    return lay


def holding(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: write(path, content())


def many(name: str, content: Callable[[], bytes], count: int = 4) -> Callable[[Path], None]:
    """Return a lay of files of one content, which takes its room once."""

    def lay(folder: Path) -> None:
        first = write(folder / f"0{name}", content())
        for at in range(1, count):
            os.link(first, folder / f"{at}{name}")

    return lay


def _far_member(folder: Path, name: bytes) -> None:
    """Write a shard whose last member is a terabyte long, and is there."""
    head = shard()[: -tarfile.RECORDSIZE]
    path = folder / "train.tar"
    sparse(path, head.rstrip(b"\0") + bytes(-len(head.rstrip(b"\0")) % 512))
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_SET)
        file.write(tar_block(name, base256(10**12 - 10**6)))


def _pax(kind: bytes) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        sparse(folder / "train.tar", tar_block(b"header", base256(10**11), kind))

    return lay


def _weights(path: Path) -> None:
    """Write a zip as torch.save does, whose pickle is said to have a terabyte."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    content = path.read_bytes()
    path.write_bytes(content.replace((100).to_bytes(4, "little"), b"\xf0\xff\xff\xff"))
    sparse(path.with_name("old.pth"))


def _prepared(folder: Path) -> None:
    """Prepare a pack of a few images."""
    photos = folder.parent / "first"
    save_pictures(photos, [(24, 18)] * 8, "ab", ["png"])
    command = ("and-dist", "prepare", "first", "--out", "photos", "--workers", "1", "--pack")
    outcome = run_command(command, folder.parent)
    assert outcome.status == 0, outcome.said


def _spoilt_prepared(name: str, spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        _prepared(folder)
        spoil(folder / "train" / name)

    return lay


TRAIN_PREPARED = (*TRAIN, "data.train=photos/train")
OVER_MANIFEST = [
    trial(
        f"{how} for {name} of a prepared set",
        _spoilt_prepared(name, REPLACE[how]),
        (TRAIN_PREPARED,),
    )
    for name in ("manifest.json", "heights.npy", "00000.tar", "classes.json")
    for how in ("a pipe", "a terabyte of zeros")
]
KNOWN = [
    trial("a pipe as a shard", over("more.tar", fifo, "tar shards")),
    trial(
        "a pipe alone",
        over("cifar-10-python.tar.gz", fifo, "flat"),
        ((*PREPARE[:2], "photos/cifar-10-python.tar.gz", *PREPARE[3:]),),
    ),
    trial(
        "a device alone",
        over("cifar-10-x.tar", device, "flat"),
        ((*PREPARE[:2], "photos/cifar-10-x.tar", *PREPARE[3:]),),
    ),
    trial("a terabyte of zeros as an image", over("9.tif", sparse, "flat"), (PREPARE, TRAIN)),
    trial(
        "a terabyte behind a JPEG",
        over("0.jpg", REPLACE["a terabyte behind its content"], "flat"),
        ((*PREPARE, "--verify"), TRAIN, EMBED),
    ),
    trial("a terabyte as a query", over("9.bmp", sparse, "flat"), ((*NEAR, "photos/9.bmp"),)),
    trial("a terabyte of idx", over("train-images-idx3-ubyte", sparse, "idx")),
    trial(
        "a terabyte of labels",
        over(
            "train-labels-idx1-ubyte.gz",
            lambda path: sparse(path.with_suffix(""), idx(np.zeros(6, np.uint8))),
            "idx",
        ),
    ),
    trial(
        "an idx that unpacks to 40 GB",
        over(
            "train-labels-idx1-ubyte.gz",
            holding(lambda: bomb(b"\0\0\x08\x01\0\0\0\x06" + bytes(6))),
            "idx",
        ),
    ),
    trial(
        "an idx that states 40 GB",
        over(
            "train-labels-idx1-ubyte.gz",
            holding(lambda: bomb(b"\0\0\x08\x01\xff\xff\xff\xff")),
            "idx",
        ),
    ),
    trial("a terabyte of CIFAR", over("data_batch_1", sparse, "CIFAR-10")),
    trial("a terabyte of binary CIFAR", over("data_batch_1.bin", sparse, "CIFAR-10 binary")),
    trial(
        "a CIFAR archive that unpacks to 40 GB",
        over(
            "cifar-10-python.tar.gz",
            holding(lambda: bomb(tar_block(b"data_batch_1", base256(30 * 10**9)))),
            "flat",
        ),
        ((*PREPARE[:2], "photos/cifar-10-python.tar.gz", *PREPARE[3:]),),
    ),
    trial(
        "a devkit that unpacks to 40 GB",
        over(
            DEVKIT,
            holding(lambda: bomb(tar_block(b"data/meta.mat", base256(30 * 10**9)))),
            "ILSVRC2012",
        ),
    ),
    trial(
        "a terabyte of SVHN",
        over("train_32x32.mat", REPLACE["a terabyte behind its content"], "SVHN"),
    ),
    trial("no image for a ground truth", over("ILSVRC2012_img_val.tar", sparse, "ILSVRC2012")),
    trial("a terabyte of a table", over("images.txt", sparse, "CUB")),
    trial("a terabyte of a list of dogs", over("train_list.mat", sparse, "Stanford Dogs")),
    trial("a member of a terabyte", partial(_far_member, name=b"000.bmp")),
    trial("a class of a terabyte", partial(_far_member, name=b"000.cls")),
    trial("a header of 100 GB", _pax(b"x")),
    trial("a name of 100 GB", _pax(b"L")),
    trial(
        "a member of a negative size",
        lambda folder: write(folder / "train.tar", tar_block(b"0.jpg", base256(-512)) + shard()),
    ),
    trial(
        "a sparse member",
        lambda folder: write(
            folder / "train.tar",
            tar_file({"0.jpg": (tarfile.GNUTYPE_SPARSE, encode(0)), "1.jpg": (b"0", encode(1))}),
        ),
    ),
    trial(
        "a tar whose name is no text",
        lambda folder: write(folder / os.fsdecode(b"caf\xe9.tar"), shard()),
        ((*PREPARE, "--pack"),),
    ),
    trial(
        "classes of CUB that are no numbers",
        over("image_class_labels.txt", lambda path: path.write_text("0 a\n1 b\n2 c\n3 d\n"), "CUB"),
    ),
    trial("four PNGs of 12,000 x 12,000", many(".png", huge_png), (HUGE,), limits=DECODING),
    trial(
        "four GIFs of 12,000 x 12,000",
        many(".gif", partial(huge_image, "GIF")),
        (HUGE,),
        limits=DECODING,
    ),
    trial(
        "four BMPs of 12,000 x 12,000",
        many(".bmp", partial(huge_image, "BMP")),
        (HUGE,),
        limits=DECODING,
    ),
    trial(
        "four PNGs in the cache",
        many(".png", huge_png),
        ((*HUGE, "data.cache_gb=1", "data.cache_side=32", "run.threads=4"),),
        limits=DECODING,
    ),
    trial(
        "PNGs of 18,000 x 18,000 that are turned",
        many(".png", partial(huge_png, 18_000, True), 2),
        limits=DECODING,
    ),
    trial(
        "a PNG of a terapixel",
        lambda folder: write(folder / "0.png", png_header(10**6, 10**6)),
        (PREPARE, TRAIN),
    ),
    trial(
        "weights of a terabyte",
        over("0.pth", _weights, "flat"),
        ((*TRAIN, "encoder.weights=photos/old.pth"), (*TRAIN, "encoder.weights=photos/0.pth")),
    ),
    trial(
        "safetensors of a terabyte",
        over("0.safetensors", sparse, "flat"),
        ((*TRAIN, "encoder.weights=photos/0.safetensors"),),
    ),
    *OVER_MANIFEST,
]
