"""CIFAR-10 and -100 as they are published, 15 images to train on and 3 to test."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tests.pictures import noise

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR100_NAMES = ("apple", "aquarium_fish", "baby")
CIFAR_IMAGES = noise(0, (18, 32, 32, 3))
CIFAR_LABELS = [number * 3 % 5 for number in range(18)]


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
    return pickle_as_python2(
        {
            "batch_label": "a batch",
            "labels": CIFAR_LABELS[rows],
            "data": planes(CIFAR_IMAGES[rows]),
            "filenames": names,
        }
    )


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
