"""Files of torch.save, in both layouts: tensors are what torch reads, all else is refused."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from and_dist.models.torch_files import OLD_MAGIC, STORAGES, SavedTensor, read_torch_file
from and_dist.utils.pickled_names import PickleError


def saved(content: object, is_zip: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


def read(folder: Path, content: bytes) -> Any:
    (folder / "file.pth").write_bytes(content)
    return read_torch_file(folder / "file.pth")


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("dtype", STORAGES.values(), ids=str)
def test_tensors_of_all_types_are_read(tmp_path: Path, dtype: torch.dtype, is_zip: bool) -> None:
    whole = torch.arange(24).view(4, 6).to(dtype)
    given = OrderedDict(
        whole=whole,
        part=whole[1:3, ::2],
        turned=whole.T,
        scalar=whole[2, 3],
        empty=whole[:0],
        parameter=nn.Parameter(whole.float()),
    )
    content = {"net": given, "acc": 0.5, "shape": whole.shape, "lr": [0.1, None, True]}
    found = read(tmp_path, saved(content, is_zip))
    assert {**found, "net": 0} == {"net": 0, "acc": 0.5, "shape": (4, 6), "lr": [0.1, None, True]}
    for name, tensor in given.items():
        ours = found["net"][name]
        assert isinstance(ours, SavedTensor)
        assert torch.equal(ours.load(), tensor.detach()), name
        assert ours.load().dtype == tensor.dtype


def changed(member: str, change: Callable[[bytes], bytes]) -> bytes:
    """A zip archive of torch's with another content of one member."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(4)}))) as theirs,
        zipfile.ZipFile(made, "w") as ours,
    ):
        for name in theirs.namelist():
            content = theirs.read(name)
            ours.writestr(name, change(content) if name.endswith(member) else content)
    return made.getvalue()


def compressed() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**8))
    return made.getvalue()


def rebuilt(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of a tensor over four numbers."""
    storage = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    numbers = b"".join(pickle.dumps(value, 0)[:-1] for value in (offset, size, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + numbers + b"I00\nNtR."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cut short"),
        (saved(torch.zeros(3), False)[:-5], "storage 0 is cut short|cut short"),
        (saved(torch.zeros(3), False)[:60], "cut short"),
        (pickle.dumps(OLD_MAGIC + 1, 2), "no file of torch.save"),
        (pickle.dumps({"a": 1}, 2), "no file of torch.save"),
        (compressed(), "data.pkl is compressed"),
        (changed("data/0", lambda content: content[:-1]), "storage 0 has 15 bytes"),
        (changed("data.pkl", lambda _: rebuilt(1, (4,), (1,))), "longer than storage 0"),
        (changed("data.pkl", lambda _: rebuilt(0, (2, 2), (4, 1))), "longer than storage 0"),
        (changed("data.pkl", lambda _: rebuilt(0, (10**9,), (0,))), "longer than storage 0"),
        (changed("data.pkl", lambda _: rebuilt(-1, (2,), (1,))), "whose shape is none"),
        (changed("data.pkl", lambda _: rebuilt(0, (-2,), (1,))), "whose shape is none"),
        (changed("data.pkl", lambda _: rebuilt(0, (2,), (-1,))), "whose shape is none"),
        (changed("data.pkl", lambda _: rebuilt(0, (2,), ())), "a tensor of an unknown kind"),
        (changed("data.pkl", lambda _: b"ctorch\nload\n."), "names torch.load"),
        (changed("data.pkl", lambda _: b"ctorch\nFloatStorage\n(tR."), "cannot be called"),
        (changed("data.pkl", lambda _: b"I1\nQ."), "a storage of an unknown kind"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(PickleError, match=sentence):
        load_all(read(tmp_path, content))


def load_all(found: Any) -> None:
    for value in found.values() if isinstance(found, dict) else [found]:
        if isinstance(value, SavedTensor):
            value.load()


def test_storages_that_lie_about_themselves_are_refused(tmp_path: Path) -> None:
    content = bytearray(saved({"a": torch.zeros(3)}, False))
    content[-20:-12] = struct.pack("<q", 2**40)
    with pytest.raises(PickleError, match=r"storage .* is cut short"):
        read(tmp_path, bytes(content))


def test_a_bent_file_is_read_or_refused(tmp_path: Path) -> None:
    """Every 7th byte of a file of each layout, changed in two ways."""
    expected = {"a": torch.arange(5.0), "b": [1, "x"]}
    for is_zip in (True, False):
        whole = saved(expected, is_zip)
        for at in range(0, len(whole), 7):
            for value in (0, 255 - whole[at]):
                content = bytearray(whole)
                content[at] = value
                with contextlib.suppress(PickleError):
                    load_all(read(tmp_path, bytes(content)))
