"""Images in tars, read where they lie: the ILSVRC2012 originals and WebDataset's shards."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from and_dist.data.importers import find_listings
from tests.pictures import encode, tar_of, write
from tests.unit.data.importers.listings import contents, find_pair, labels

SYNSETS = ["n03", "n01", "n02"]
"""In the order of their ILSVRC2012 ids, which is not the order of their names."""
VAL_IDS = [2, 1, 3, 3]
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12"


def save_ilsvrc_tars(folder: Path) -> tuple[list[bytes], list[bytes]]:
    """Class tars and val images come in no order; (train, val) images as the rows should be."""
    images = {
        name: {f"{name}_{number}.JPEG": encode(10 * at + number) for number in range(at + 1)}
        for at, name in enumerate(sorted(SYNSETS))
    }
    classes = {f"{name}.tar": tar_of(images[name]) for name in SYNSETS}
    write(folder / "ILSVRC2012_img_train.tar", tar_of(classes))
    val = {f"ILSVRC2012_val_{number:08}.JPEG": encode(90 + number) for number in (3, 1, 4, 2)}
    write(folder / "ILSVRC2012_img_val.tar", tar_of(val))
    train = [content for name in sorted(SYNSETS) for content in images[name].values()]
    return train, [val[name] for name in sorted(val)]


def save_text_truth(folder: Path, ids: Sequence[int] = VAL_IDS) -> None:
    lines = [f"{name} words, that say it" for name in SYNSETS]
    write(folder / "synsets.txt", "\n".join((*lines, "")))
    write(folder / GROUND_TRUTH, "".join(f"{number}\n" for number in ids))


def save_devkit(folder: Path) -> None:
    """The leaves of the tree have the ids 1 to C, the inner nodes those after."""
    kinds = [
        ("ILSVRC2012_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    leaves = [
        (at + 1, name, f"word {name}", "gloss", 0, np.zeros(0), 0, 1300)
        for at, name in enumerate(SYNSETS)
    ]
    inner = [(4, "n00", "entity", "all of it", 3, np.array([1, 2, 3]), 1, 0)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(inner + leaves, kinds)[:, None]})
    files = {
        f"{DEVKIT}/data/meta.mat": meta.getvalue(),
        f"{DEVKIT}/data/{GROUND_TRUTH}": "".join(f"{n}\n" for n in VAL_IDS).encode(),
        f"{DEVKIT}/readme.txt": b"read me",
    }
    write(folder / f"{DEVKIT}.tar.gz", gzip.compress(tar_of(files)))


@pytest.mark.parametrize("save_truth", [save_text_truth, save_devkit])
def test_ilsvrc_tars(tmp_path: Path, save_truth: Callable[[Path], None]) -> None:
    train_images, val_images = save_ilsvrc_tars(tmp_path)
    save_truth(tmp_path)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("n01", "n02", "n03")
    assert labels(train) == [0, 1, 1, 2, 2, 2]
    assert labels(test) == [0, 2, 1, 1]
    assert contents(train) == train_images
    assert contents(test) == val_images


def test_ilsvrc_train_tar_alone(tmp_path: Path) -> None:
    train_images, _ = save_ilsvrc_tars(tmp_path)
    (tmp_path / "ILSVRC2012_img_val.tar").unlink()
    (train,) = find_listings(tmp_path)
    assert contents(train) == train_images


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([1, 2, 3], f"{GROUND_TRUTH} has 3 lines, ILSVRC2012_img_val.tar 4 images"),
        ([1, 2, 3, 1, 2], f"{GROUND_TRUTH} has 5 lines"),
        ([1, 2, 3, 4], f"{GROUND_TRUTH} has 4, which is not one of 1..3"),
        ([1, 2, 3, 0], f"{GROUND_TRUTH} has 0, which is not one of 1..3"),
        (["1", "2", "3", "n03"], f"{GROUND_TRUTH} is no list of numbers"),
    ],
)
def test_ilsvrc_ground_truth_that_does_not_fit(
    tmp_path: Path, ids: Sequence[int], sentence: str
) -> None:
    save_ilsvrc_tars(tmp_path)
    save_text_truth(tmp_path, ids)
    with pytest.raises(ValueError, match=rf"^{tmp_path}[:/] ?{sentence}"):
        find_listings(tmp_path)


def test_ilsvrc_synsets_may_end_in_an_empty_line(tmp_path: Path) -> None:
    save_ilsvrc_tars(tmp_path)
    save_text_truth(tmp_path)
    (tmp_path / "synsets.txt").write_text("n03\nn01\nn02\n\n")
    assert labels(find_listings(tmp_path)[1]) == [0, 2, 1, 1]


def test_ilsvrc_val_without_ground_truth_says_what_is_missing(tmp_path: Path) -> None:
    save_ilsvrc_tars(tmp_path)
    with pytest.raises(ValueError, match=r"has no synsets\.txt"):
        find_listings(tmp_path)
    (tmp_path / "synsets.txt").write_text("n01\n")
    with pytest.raises(ValueError, match=f"has no {GROUND_TRUTH}"):
        find_listings(tmp_path)


def test_a_devkit_that_is_none_is_named(tmp_path: Path) -> None:
    save_ilsvrc_tars(tmp_path)
    for content in (b"none", tar_of({"meta.mat": b"none"}), tar_of({"data/meta.mat": bytes(200)})):
        write(tmp_path / f"{DEVKIT}.tar.gz", content)
        with pytest.raises(ValueError, match=rf"{DEVKIT}\.tar\.gz is no devkit of ILSVRC2012"):
            find_listings(tmp_path)


def test_ilsvrc_train_tar_cut_short_is_named(tmp_path: Path) -> None:
    save_ilsvrc_tars(tmp_path)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:15_000])
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar cannot be read to its end"):
        find_listings(tmp_path)


def test_tar_shards(tmp_path: Path) -> None:
    images = [encode(number, "PNG" if number % 2 else "JPEG") for number in range(5)]
    write(
        tmp_path / "train-0.tar",
        tar_of(
            {
                "000.cls": b"10",
                "000.jpg": images[0],
                "000.json": b"{}",
                "sub/001.png": images[1],
                "sub/001.cls": b"2\n",
            }
        ),
    )
    write(tmp_path / "train-1.tar", tar_of({"000.jpg": images[2], "000.cls": b"2"}))
    first = {"a.b.png": images[3], "a.cls": b"10"}
    write(tmp_path / "val-0.tar", tar_of(first | {"b.jpg": images[4], "b.cls": b"2"}))
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("2", "10")
    assert (labels(train), labels(test)) == ([1, 0, 0], [1, 0])
    assert contents(train) == images[:3]
    assert contents(test) == images[3:]


def test_one_tar_without_classes(tmp_path: Path) -> None:
    images = {f"{number}.jpg": encode(number) for number in range(3)}
    (train,) = find_listings(write(tmp_path / "all.tar", tar_of(images)))
    assert (train.split, train.labels_N, train.class_names) == ("train", None, ())
    assert contents(train) == list(images.values())


def test_long_names_in_a_tar(tmp_path: Path) -> None:
    """GNU and PAX tars put a header of their own before such a member."""
    name = f"{'deep/' * 40}{'x' * 120}"
    content = tar_of({f"{name}.jpg": encode(1), f"{name}.cls": b"7"})
    (train,) = find_listings(write(tmp_path / "all.tar", content))
    assert contents(train) == [encode(1)]
    assert train.class_names == ("7",)


@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", ".."])
def test_a_tar_with_a_path_that_leaves_it_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "bad.tar", tar_of({"a.jpg": encode(1), name: encode(2)}))
    with pytest.raises(ValueError, match=r"bad\.tar holds '.*', a path that leaves its folder"):
        find_listings(tmp_path)


SHARD = tar_of({f"{number}.jpg": encode(number, size=(40, 40)) for number in range(4)})
SECOND_HEADER = SHARD.index(b"1.jpg\0")


@pytest.mark.parametrize(
    "kept", [1, 300, 700, SECOND_HEADER - 600, SECOND_HEADER + 300, SECOND_HEADER + 700]
)
def test_a_tar_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    write(tmp_path / "short.tar", SHARD[:kept])
    with pytest.raises(ValueError, match=r"tar .*short\.tar cannot be read to its end"):
        find_listings(tmp_path)


def test_a_tar_with_a_damaged_header_is_named(tmp_path: Path) -> None:
    damaged = bytearray(SHARD)
    damaged[SECOND_HEADER + 100 : SECOND_HEADER + 200] = b"\xff" * 100
    write(tmp_path / "damaged.tar", bytes(damaged))
    with pytest.raises(ValueError, match=r"damaged\.tar"):
        find_listings(tmp_path)


def test_a_tar_that_is_none_or_holds_no_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.tar cannot be read"):
        find_listings(write(tmp_path / "none.tar", b"no tar at all" * 100))
    with pytest.raises(ValueError, match=r"notes\.tar and the other train shards hold no image"):
        find_listings(write(tmp_path / "notes.tar", tar_of({"a.txt": b"hello"})))


def test_a_class_that_is_no_text_is_named(tmp_path: Path) -> None:
    write(tmp_path / "shard.tar", tar_of({"a.jpg": encode(1), "a.cls": b"\xff\xfe"}))
    with pytest.raises(ValueError, match=r"shard\.tar"):
        find_listings(tmp_path)


def test_a_symbolic_link_in_a_tar_is_no_image(tmp_path: Path) -> None:
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        image = tarfile.TarInfo("a.jpg")
        image.size = len(encode(1))
        archive.addfile(image, io.BytesIO(encode(1)))
        archive.addfile(link)
    (train,) = find_listings(tmp_path)
    assert contents(train) == [encode(1)]
