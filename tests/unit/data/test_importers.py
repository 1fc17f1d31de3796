"""Small true-to-life sources of every layout, what is read from them, and what is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.io import savemat

from and_dist.data.headers import HEAD_BYTES, Unreadable, size_of_bytes, size_of_file
from and_dist.data.importers import find_listings
from and_dist.data.importers.listing import Files, Listing, Members, Pixels
from and_dist.data.measure import measure
from and_dist.data.stores import FileReader

DIGITS = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR100_NAMES = ("apple", "aquarium_fish", "baby")


def draw(seed: int, shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(seed: int, kind: str = "JPEG", size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
    """An encoded image that no other seed gives; size is (width, height)."""
    file = io.BytesIO()
    Image.fromarray(draw(seed, (size[1], size[0], 3))).save(file, kind, **options)
    return file.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def contents(listing: Listing) -> list[bytes]:
    """The bytes of every image, by row."""
    match listing.content:
        case Files(root, names):
            return [(root / name).read_bytes() for name in names]
        case Members(archives, file_N, offset_N, length_N):
            reader = FileReader(archives)
            places = zip(file_N.tolist(), offset_N.tolist(), length_N.tolist(), strict=True)
            return [reader.read(*place) for place in places]
    raise AssertionError("pixels have no encoded bytes")


def pixels(listing: Listing) -> np.ndarray:
    assert isinstance(listing.content, Pixels)
    return listing.content.images_NHWC


def labels(listing: Listing) -> list[int]:
    assert listing.labels_N is not None
    assert listing.labels_N.dtype == np.int64
    return listing.labels_N.tolist()


def find_pair(source: Path) -> tuple[Listing, Listing]:
    train, test = find_listings(source)
    assert (train.split, test.split) == ("train", "test")
    return train, test


def planes(images_NHWC: np.ndarray) -> np.ndarray:
    """As CIFAR stores images: the red plane, the green one, the blue one."""
    return images_NHWC.transpose(0, 3, 1, 2).reshape(len(images_NHWC), -1)


# CIFAR was written by Python 2 and NumPy 1; its pickles hold what these two functions write.
def pickle_as_python2(value: Any) -> bytes:
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case dict():
            items = b"".join(_opcodes(key) + _opcodes(entry) for key, entry in value.items())
            return b"}(" + items + b"u"
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case int():
            return b"J" + struct.pack("<i", value)
        case str() | bytes():
            text = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(text)) + text
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _opcodes(0)
    made += b"\x85" + _opcodes("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + _opcodes("u1") + _opcodes(0) + _opcodes(1) + b"\x87R("
    dtype += _opcodes(3) + _opcodes("|") + b"NNN" + _opcodes(-1) * 2 + _opcodes(0) + b"tb"
    shape = b"(" + b"".join(map(_opcodes, value.shape)) + b"t"
    return made + b"(" + _opcodes(1) + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"


CIFAR_IMAGES = draw(0, (18, 32, 32, 3))
CIFAR_LABELS = [number * 3 % 5 for number in range(18)]


def cifar10_python() -> dict[str, bytes]:
    files = {
        f"data_batch_{part + 1}": cifar_batch(slice(3 * part, 3 * part + 3)) for part in range(5)
    }
    meta = {"num_cases_per_batch": 3, "label_names": list(CIFAR10_NAMES), "num_vis": 3072}
    return files | {
        "test_batch": cifar_batch(slice(15, 18)),
        "batches.meta": pickle_as_python2(meta),
        "readme.html": b"<html>",
    }


def cifar_batch(rows: slice) -> bytes:
    names = [f"image_{row}.png" for row in range(rows.start, rows.stop)]
    return pickle_as_python2({
        "batch_label": "a batch",
        "labels": CIFAR_LABELS[rows],
        "data": planes(CIFAR_IMAGES[rows]),
        "filenames": names,
    })  # fmt: skip


def cifar10_binary() -> dict[str, bytes]:
    names = {f"data_batch_{part + 1}.bin": slice(3 * part, 3 * part + 3) for part in range(5)}
    names["test_batch.bin"] = slice(15, 18)
    files = {name: cifar_records(rows) for name, rows in names.items()}
    return files | {"batches.meta.txt": "\n".join((*CIFAR10_NAMES, "")).encode()}


def cifar_records(rows: slice) -> bytes:
    first = np.array(CIFAR_LABELS[rows], np.uint8)[:, None]
    return np.concatenate([first, planes(CIFAR_IMAGES[rows])], axis=1).tobytes()


def cifar100_python() -> dict[str, bytes]:
    def batch(rows: slice) -> bytes:
        fine = [label % 3 for label in CIFAR_LABELS[rows]]
        data = planes(CIFAR_IMAGES[rows])
        coarse = [label // 4 for label in CIFAR_LABELS[rows]]
        content = {"fine_labels": fine, "coarse_labels": coarse, "data": data}
        return pickle_as_python2(content)

    names = {"fine_label_names": list(CIFAR100_NAMES), "coarse_label_names": ["food", "fish"]}
    meta = pickle_as_python2(names)
    return {"train": batch(slice(15)), "test": batch(slice(15, 18)), "meta": meta}


def cifar100_binary() -> dict[str, bytes]:
    def records(rows: slice) -> bytes:
        both = [[label // 4, label % 3] for label in CIFAR_LABELS[rows]]
        return np.concatenate([np.uint8(both), planes(CIFAR_IMAGES[rows])], axis=1).tobytes()

    names = {
        "fine_label_names.txt": "\n".join((*CIFAR100_NAMES, "")).encode(),
        "coarse_label_names.txt": b"food\nfish\n",
    }
    return {"train.bin": records(slice(15)), "test.bin": records(slice(15, 18)), **names}


def assert_is_cifar(source: Path, class_names: tuple[str, ...]) -> None:
    train, test = find_pair(source)
    assert train.class_names == test.class_names == class_names
    assert (len(train), len(test)) == (15, 3)
    expected = [label % len(class_names) for label in CIFAR_LABELS]
    assert (labels(train), labels(test)) == (expected[:15], expected[15:])
    assert (pixels(train) == CIFAR_IMAGES[:15]).all()
    assert (pixels(test) == CIFAR_IMAGES[15:]).all()


CIFARS = pytest.mark.parametrize(
    ("build", "folder", "class_names"),
    [
        (cifar10_python, "cifar-10-batches-py", CIFAR10_NAMES),
        (cifar10_binary, "cifar-10-batches-bin", CIFAR10_NAMES),
        (cifar100_python, "cifar-100-python", CIFAR100_NAMES),
        (cifar100_binary, "cifar-100-binary", CIFAR100_NAMES),
    ],
)
CifarBuilder = Callable[[], dict[str, bytes]]


@CIFARS
def test_cifar_folder(
    tmp_path: Path, build: CifarBuilder, folder: str, class_names: tuple[str, ...]
) -> None:
    for name, content in build().items():
        write(tmp_path / folder / name, content)
    assert_is_cifar(tmp_path / folder, class_names)


@CIFARS
def test_cifar_in_the_folder_around_it(
    tmp_path: Path, build: CifarBuilder, folder: str, class_names: tuple[str, ...]
) -> None:
    for name, content in build().items():
        write(tmp_path / folder / name, content)
    assert_is_cifar(tmp_path, class_names)


@CIFARS
def test_cifar_archive(
    tmp_path: Path, build: CifarBuilder, folder: str, class_names: tuple[str, ...]
) -> None:
    archive = tar_of({f"{folder}/{name}": content for name, content in build().items()})
    name = folder.replace("batches-py", "python").replace("batches-bin", "binary") + ".tar.gz"
    assert_is_cifar(write(tmp_path / name, gzip.compress(archive, 1)), class_names)


def test_a_cifar_pickle_cannot_call_anything(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {marker}",)

    folder = tmp_path / "cifar-10-batches-py"
    for name, content in cifar10_python().items():
        write(folder / name, content)
    for protocol in (0, 2, 4):
        write(folder / "data_batch_2", pickle.dumps({b"data": Evil()}, protocol))
        with pytest.raises(ValueError, match=r"data_batch_2 .* would call posix\.system"):
            find_listings(folder)
        assert not marker.exists()
    pickle.loads(pickle.dumps(Evil()))
    assert marker.exists()


@pytest.mark.parametrize(
    ("build", "file", "damage"),
    [
        (cifar10_python, "data_batch_3", lambda content: content[:500]),
        (cifar10_python, "batches.meta", lambda content: content[:20]),
        (cifar10_python, "test_batch", lambda _: pickle_as_python2({"labels": [1, 2]})),
        (cifar10_python, "batches.meta", lambda _: pickle_as_python2({"names": []})),
        (cifar10_binary, "data_batch_4.bin", lambda content: content[:-1]),
        (cifar10_binary, "test_batch.bin", lambda content: content[:-1]),
        (cifar100_binary, "train.bin", lambda content: content[:-7]),
    ],
)
def test_a_damaged_file_of_cifar_is_named(
    tmp_path: Path, build: CifarBuilder, file: str, damage: Callable[[bytes], bytes]
) -> None:
    for name, content in build().items():
        write(tmp_path / name, damage(content) if name == file else content)
    with pytest.raises(ValueError, match=file):
        find_listings(tmp_path)


def test_cifar_needs_a_label_for_every_image(tmp_path: Path) -> None:
    for name, content in cifar10_python().items():
        write(tmp_path / name, content)
    batch = {"labels": [1, 2], "data": planes(CIFAR_IMAGES[:3])}
    write(tmp_path / "data_batch_5", pickle_as_python2(batch))
    with pytest.raises(ValueError, match="data_batch_5"):
        find_listings(tmp_path)


def test_a_cifar_archive_cut_short_is_named(tmp_path: Path) -> None:
    archive = gzip.compress(tar_of(cifar10_python()))
    path = write(tmp_path / "cifar-10-python.tar.gz", archive[: len(archive) // 2])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz cannot be read"):
        find_listings(path)


def save_svhn(folder: Path, split: str, images_NHWC: np.ndarray, digits: list[int]) -> None:
    published = np.array([digit or 10 for digit in digits], np.uint8)[:, None]
    content = {"X": images_NHWC.transpose(1, 2, 3, 0), "y": published}
    savemat(folder / f"{split}_32x32.mat", content, do_compression=True)


def test_svhn_counts_its_label_10_as_0(tmp_path: Path) -> None:
    images = draw(1, (9, 32, 32, 3))
    save_svhn(tmp_path, "train", images[:4], [0, 1, 9, 0])
    save_svhn(tmp_path, "test", images[4:7], [5, 0, 2])
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == DIGITS
    assert (labels(train), labels(test)) == ([0, 1, 9, 0], [5, 0, 2])
    assert (pixels(train) == images[:4]).all()
    assert (pixels(test) == images[4:7]).all()
    save_svhn(tmp_path, "extra", images[7:], [3, 4])
    extra = find_listings(tmp_path)[2]
    assert (extra.split, labels(extra)) == ("extra", [3, 4])
    assert (pixels(extra) == images[7:]).all()


@pytest.mark.parametrize("kept", [0, 60, 200, 5000])
def test_svhn_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    save_svhn(tmp_path, "train", draw(1, (4, 32, 32, 3)), [1, 2, 3, 4])
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train_32x32\.mat is no file of SVHN"):
        find_listings(tmp_path)


def test_svhn_needs_a_label_for_every_image(tmp_path: Path) -> None:
    save_svhn(tmp_path, "train", draw(1, (4, 32, 32, 3)), [1, 2, 3])
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        find_listings(tmp_path)


def idx_of(values: np.ndarray) -> bytes:
    header = struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape)
    return header + values.tobytes()


def save_idx(folder: Path, prefix: str, images: np.ndarray, digits: list[int], end: str) -> None:
    pack = gzip.compress if end == ".gz" else bytes
    write(folder / f"{prefix}-images-idx3-ubyte{end}", pack(idx_of(images)))
    write(folder / f"{prefix}-labels-idx1-ubyte{end}", pack(idx_of(np.uint8(digits))))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files(tmp_path: Path, end: str) -> None:
    images = draw(2, (6, 28, 28))
    save_idx(tmp_path, "train", images[:4], [3, 0, 9, 1], end)
    save_idx(tmp_path, "t10k", images[4:], [9, 7], end)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == DIGITS
    assert (labels(train), labels(test)) == ([3, 0, 9, 1], [9, 7])
    assert (pixels(train) == images[:4, :, :, None]).all()
    assert pixels(test).shape == (2, 28, 28, 3)
    assert (pixels(test) == images[4:, :, :, None]).all()


def test_idx_files_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "train-images.idx3-ubyte", idx_of(draw(2, (3, 8, 6))))
    (train,) = find_listings(tmp_path)
    assert train.labels_N is None
    assert train.class_names == ()
    assert pixels(train).shape == (3, 8, 6, 3)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("kept", [0, 3, 15, 40, 700])
def test_idx_cut_short_is_named(tmp_path: Path, end: str, kept: int) -> None:
    save_idx(tmp_path, "train", draw(2, (4, 28, 28)), [1, 2, 3, 4], end)
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        find_listings(tmp_path)


def test_idx_with_a_damaged_middle_is_named(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", draw(2, (4, 28, 28)) // 16, [1, 2, 3, 4], ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        find_listings(tmp_path)


def test_idx_needs_a_label_for_every_image(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", draw(2, (4, 8, 8)), [1, 2, 3], "")
    with pytest.raises(ValueError, match="labels-idx1-ubyte has 3 labels for 4 images"):
        find_listings(tmp_path)


def test_idx_of_another_kind_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train-images-idx3-ubyte", idx_of(draw(2, (64,))))
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is no idx file of 3 dim"):
        find_listings(tmp_path)


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
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
             ("num_children", "O"), ("children", "O"), ("wordnet_height", "O"),
             ("num_train_images", "O")]  # fmt: skip
    leaves = [(at + 1, name, f"word {name}", "gloss", 0, np.zeros(0), 0, 1300)
              for at, name in enumerate(SYNSETS)]  # fmt: skip
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
        (["1", "2", "3", "n03"], GROUND_TRUTH),
    ],
)
def test_ilsvrc_ground_truth_that_does_not_fit(
    tmp_path: Path, ids: Sequence[int], sentence: str
) -> None:
    save_ilsvrc_tars(tmp_path)
    save_text_truth(tmp_path, ids)
    with pytest.raises(ValueError, match=sentence):
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


CUB_ROWS = [
    ("1", "001.Albatross/Black_1.jpg", "1", "1"),
    ("2", "001.Albatross/Black_2.jpg", "1", "0"),
    ("3", "002.Auklet/Crested_1.jpg", "2", "0"),
    ("4", "010.Blackbird/Red_1.jpg", "10", "1"),
]
"""Number, file, class, and 1 where it is for training."""


def save_cub(folder: Path) -> list[bytes]:
    images = [encode(at) for at in range(len(CUB_ROWS))]
    for (_, file, _, _), content in zip(CUB_ROWS, images, strict=True):
        write(folder / "images" / file, content)
    tables = {
        "images": [f"{number} {file}" for number, file, _, _ in CUB_ROWS],
        "image_class_labels": [f"{number} {label}" for number, _, label, _ in CUB_ROWS],
        "train_test_split": [f"{number} {flag}" for number, _, _, flag in CUB_ROWS],
        "classes": ["1 001.Albatross", "2 002.Auklet", "10 010.Blackbird"],
        "bounding_boxes": [f"{number} 1.0 1.0 5.0 5.0" for number, _, _, _ in CUB_ROWS],
    }
    for name, lines in tables.items():
        write(folder / f"{name}.txt", "\n".join((*lines, "")))
    return images


def test_cub(tmp_path: Path) -> None:
    images = save_cub(tmp_path)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("001.Albatross", "002.Auklet", "010.Blackbird")
    assert (labels(train), labels(test)) == ([0, 2], [0, 1])
    assert contents(train) == [images[0], images[3]]
    assert contents(test) == images[1:3]


@pytest.mark.parametrize("table", ["images", "image_class_labels", "train_test_split"])
def test_a_table_of_cub_that_is_none_is_named(tmp_path: Path, table: str) -> None:
    save_cub(tmp_path)
    (tmp_path / f"{table}.txt").write_text("1 a\nalone\n")
    with pytest.raises(ValueError, match=rf"{table}\.txt is not a table"):
        find_listings(tmp_path)


def test_cub_needs_a_label_for_every_image(tmp_path: Path) -> None:
    save_cub(tmp_path)
    (tmp_path / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    with pytest.raises(ValueError, match=r"image_class_labels\.txt"):
        find_listings(tmp_path)


DOGS = {
    "train": ["n02-Chihuahua/n02_10.jpg", "n02-Chihuahua/n02_7.jpg", "n11-Husky/n11_1.jpg"],
    "test": ["n02-Chihuahua/n02_8.jpg", "n11-Husky/n11_2.jpg"],
}


def save_dogs(folder: Path, lists: Path) -> dict[str, bytes]:
    names = [name for split in DOGS.values() for name in split]
    images = {name: encode(number) for number, name in enumerate(names)}
    for name, content in images.items():
        write(folder / "Images" / name, content)
    lists.mkdir(exist_ok=True)
    for split, files in DOGS.items():
        cells = np.array(files, object)[:, None]
        numbers = np.array([1 + ("Husky" in file) for file in files], np.uint8)[:, None]
        savemat(lists / f"{split}_list.mat", {"file_list": cells, "labels": numbers})
    return images


@pytest.mark.parametrize("place", [".", "lists"])
def test_stanford_dogs(tmp_path: Path, place: str) -> None:
    images = save_dogs(tmp_path, tmp_path / place)
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("n02-Chihuahua", "n11-Husky")
    assert (labels(train), labels(test)) == ([0, 0, 1], [0, 1])
    assert contents(train) == [images[name] for name in DOGS["train"]]
    assert contents(test) == [images[name] for name in DOGS["test"]]


@pytest.mark.parametrize("kept", [0, 50, 200])
def test_a_damaged_list_of_stanford_dogs_is_named(tmp_path: Path, kept: int) -> None:
    save_dogs(tmp_path, tmp_path)
    path = tmp_path / "test_list.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"test_list\.mat is no list of Stanford Dogs"):
        find_listings(tmp_path)


def test_tar_shards(tmp_path: Path) -> None:
    images = [encode(number, "PNG" if number % 2 else "JPEG") for number in range(5)]
    write(tmp_path / "train-0.tar", tar_of({
        "000.cls": b"10", "000.jpg": images[0], "000.json": b"{}",
        "sub/001.png": images[1], "sub/001.cls": b"2\n",
    }))  # fmt: skip
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


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_train_and_held_out_folders(tmp_path: Path, held_out: str) -> None:
    for number, name in enumerate(("train/b/0.jpg", "train/a/1.JPEG", f"{held_out}/b/2.png")):
        write(tmp_path / name, encode(number))
    write(tmp_path / held_out / "a" / "deep" / "3.jpg", encode(3))
    train, test = find_pair(tmp_path)
    assert train.class_names == test.class_names == ("a", "b")
    assert (labels(train), labels(test)) == ([0, 1], [0, 1])
    assert contents(train) == [encode(1), encode(0)]
    assert contents(test) == [encode(3), encode(2)]


def test_two_held_out_folders_are_one_too_many(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write(tmp_path / name / "a.jpg", encode(1))
    with pytest.raises(ValueError, match="holds several of val, test"):
        find_listings(tmp_path)


def test_class_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/x.jpg", "cat/deep/y.jpg", "cat-fish/z.jpg", "dog/a.jpg")):
        write(tmp_path / name, encode(number))
    (train,) = find_listings(tmp_path)
    assert (train.split, train.class_names) == ("train", ("cat", "cat-fish", "dog"))
    assert labels(train) == [0, 1, 2, 2]
    assert contents(train) == [encode(1), encode(2), encode(3), encode(0)]


def test_a_flat_folder_and_names_that_are_no_text(tmp_path: Path) -> None:
    names = ["b.jpg", "a b.jpg", "Ünï.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    for number, name in enumerate(names):
        write(tmp_path / name, encode(number))
    (train,) = find_listings(tmp_path)
    assert (train.labels_N, train.class_names) == (None, ())
    assert contents(train) == [encode(names.index(name)) for name in sorted(names)]


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_listings(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no image"):
        find_listings(tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is none of: CIFAR-10"):
        find_listings(write(tmp_path / "notes.txt", "hello"))
    with pytest.raises(ValueError, match=r"notes\.txt is not an image by its name"):
        find_listings(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_sides_and_bytes_are_measured_alike_in_files_and_tars(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("and_dist.data.measure.IMAGES_PER_TASK", 3)
    images = {f"{n:02}.jpg": encode(n, size=(5 + n, 30 - n)) for n in range(10)}
    images["04.jpg"] = b"nothing"
    for name, content in images.items():
        write(tmp_path / "folder" / name, content)
    write(tmp_path / "all.tar", tar_of(images))
    for source in (tmp_path / "folder", tmp_path / "all.tar"):
        content = find_listings(source)[0].content
        assert not isinstance(content, Pixels)
        counts: list[int] = []
        found = measure(content, workers, counts.append)
        assert sum(counts) == 10
        assert list(found.reasons) == [4]
        good = [n for n in range(10) if n != 4]
        assert found.widths_N[good].tolist() == [5 + n for n in good]
        assert found.heights_N[good].tolist() == [30 - n for n in good]
        assert found.length_N[good].tolist() == [len(images[f"{n:02}.jpg"]) for n in good]


def shown_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) as Pillow shows the image upright."""
    with Image.open(io.BytesIO(encoded)) as image:
        width, height = ImageOps.exif_transpose(image).size
    return height, width


def oriented(orientation: int, **entries: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = entries.get("maker", "a maker of cameras")
    return exif


def encode_mode(mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw(5, (21, 13, 3))).convert(mode).save(file, kind, **options)
    return file.getvalue()


HEADS = {
    "baseline": encode(1, size=(33, 21)),
    "progressive": encode(1, size=(33, 21), progressive=True),
    "restarts": encode(1, size=(33, 21), restart_marker_rows=1),
    "comment": encode(1, size=(33, 21), comment=b"\xff\xc0 not a frame" * 20),
    "long profile": encode(1, size=(33, 21), icc_profile=bytes(3 * HEAD_BYTES)),
    "CMYK": encode_mode("CMYK", "JPEG"),
    "gray JPEG": encode_mode("L", "JPEG"),
    "PNG": encode(1, "PNG", size=(33, 21)),
    "palette PNG": encode_mode("P", "PNG"),
    "BMP": encode(1, "BMP", size=(33, 21)),
    "WebP": encode(1, "WEBP", size=(33, 21)),
    "TIFF": encode(1, "TIFF", size=(33, 21)),
    "GIF": encode_mode("P", "GIF"),
    "PPM": encode(1, "PPM", size=(33, 21)),
    "1x1 JPEG": encode(1, size=(1, 1)),
    "1x1 PNG": encode(1, "PNG", size=(1, 1)),
    "65000x1": encode(1, size=(65000, 1)),
}


def assert_sizes_are_pillows(encoded: bytes, folder: Path) -> None:
    expected = shown_size(encoded)
    assert size_of_bytes(encoded) == expected
    path = write(folder / "image", encoded)
    assert size_of_file(path) == (len(encoded), *expected)


@pytest.mark.parametrize("name", HEADS)
def test_headers_tell_the_size(tmp_path: Path, name: str) -> None:
    assert_sizes_are_pillows(HEADS[name], tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_of_images_a_camera_turned(tmp_path: Path, kind: str, orientation: int) -> None:
    assert_sizes_are_pillows(encode(1, kind, size=(33, 21), exif=oriented(orientation)), tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_orientation_beyond_the_first_bytes_counts(tmp_path: Path, kind: str) -> None:
    exif = oriented(6, maker="m" * 2 * HEAD_BYTES)
    assert_sizes_are_pillows(encode(1, kind, size=(33, 21), exif=exif), tmp_path)


def test_an_orientation_in_big_endian_counts(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    assert_sizes_are_pillows(encode(1, size=(33, 21), exif=exif), tmp_path)


def with_orientation_after_its_pixels(orientation: int) -> bytes:
    """PNG allows eXIf after the image data."""
    before = encode(1, "PNG", size=(133, 101), exif=oriented(orientation))
    at = before.index(b"eXIf") - 4
    end = at + 12 + struct.unpack(">I", before[at : at + 4])[0]
    assert len(before) > 2 * HEAD_BYTES
    return before[:at] + before[end:-12] + before[at:end] + before[-12:]


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    assert_sizes_are_pillows(with_orientation_after_its_pixels(6), tmp_path)


def test_no_image_is_unreadable_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="it is empty"):
        size_of_bytes(b"")
    with pytest.raises(Unreadable, match="no known image format"):
        size_of_bytes(b"hello, this is a letter")
    with pytest.raises(Unreadable, match="cannot be read: No such file"):
        size_of_file(tmp_path / "none.jpg")
    with pytest.raises(Unreadable, match="cannot be read: Is a directory"):
        size_of_file(tmp_path)


DDS = b"DDS |\0\0\0\x07\x10\0\0" + bytes(64) + b"\x20\0\0\0\x9b" + bytes(47)
AVIF = encode(1, "AVIF", size=(32, 32)).replace(b"iinf\0\0\0\0\0\1", b"iinf" + bytes(6))


@pytest.mark.parametrize("encoded", [DDS, AVIF])
def test_what_pillow_gives_up_on_is_unreadable(encoded: bytes) -> None:
    with pytest.raises(Unreadable):
        size_of_bytes(encoded)


def assert_sized_or_unreadable(encoded: bytes) -> None:
    with contextlib.suppress(Unreadable):
        assert min(size_of_bytes(encoded)) >= 0


SIGNATURES = [
    b"\xff\xd8", b"\xff\xd8\xff\xe1\x00\x40Exif\0\0II*\0\x08\0\0\0",
    b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a", b"BM",
    b"RIFF\x40\0\0\0WEBPVP8 ", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"P6 ", b"P5\n3 ",
    b"\0\0\x01\0", b"8BPS\0\x01", b"\n\x05\x01\x08",
]  # fmt: skip


@given(st.sampled_from([b"", *SIGNATURES]), st.binary(max_size=120))
def test_random_bytes_are_sized_or_unreadable(signature: bytes, rest: bytes) -> None:
    assert_sized_or_unreadable(signature + rest)


TURNED = {kind: encode(1, kind, exif=oriented(6)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}


@given(st.sampled_from([*HEADS.values(), *TURNED.values()]), st.data())
def test_damaged_images_are_sized_or_unreadable(encoded: bytes, data: st.DataObject) -> None:
    content = bytearray(encoded[:2000])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert_sized_or_unreadable(bytes(content[: data.draw(st.integers(0, len(content)))]))
