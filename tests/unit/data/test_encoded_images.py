"""What DALI is given: PNGs without what libpng warns of, the first frames of GIFs."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from and_dist.config.schema import DataConfig
from and_dist.data.datasets import index_folder
from and_dist.data.encoded_images import first_frame, make_decodable
from and_dist.data.image_headers import PNG_SIGNATURE, Unreadable
from and_dist.data.index import open_manifest
from and_dist.data.loader import FeatureLoader
from and_dist.data.preparation.prepare import Job, prepare
from and_dist.data.transcode import PackOptions
from and_dist.data.unreadable import BadImages
from and_dist.utils.progress import NoReport
from tests.pictures import picture, save, write

SIZE = (50, 40)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(image: Image.Image, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    encoded = buffer.getvalue()
    return encoded[:33] + b"".join(chunks) + encoded[33:]


PROFILE = chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"no profile at all" * 20))
BAD_SUM = chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)
WARNED_OF = {
    "profile": png(picture(size=SIZE), PROFILE),
    "checksum": png(picture(size=SIZE), BAD_SUM),
    "time": png(picture(size=SIZE), chunk(b"tIME", bytes(7))),
    "palette": png(picture(size=SIZE).convert("L"), chunk(b"PLTE", bytes(30))),
    "significant bits": png(picture(size=SIZE), chunk(b"sBIT", bytes(3))),
}
"""PNGs of which libpng warns on standard error whenever it decodes them."""


def images_of(folder: Path) -> torch.Tensor:
    """All images of a folder as the test transform shows them."""
    index = index_folder(folder).index
    config = DataConfig(image_size=32)
    bad = BadImages(index, "stop")
    loader = FeatureLoader(index, config, 4, torch.device("cpu"), bad)
    rows = np.arange(len(index))
    return torch.cat([batch.images_BCHW.clone() for batch in loader.batches(rows)])


@pytest.mark.parametrize("name", WARNED_OF)
def test_libpng_has_nothing_to_warn_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    write(tmp_path / "odd" / "a.png", WARNED_OF[name])
    plain = Image.open(io.BytesIO(WARNED_OF[name])) if name == "palette" else picture(size=SIZE)
    save(tmp_path / "plain" / "a.png", plain)
    assert torch.equal(images_of(tmp_path / "odd"), images_of(tmp_path / "plain"))
    assert "libpng" not in capfd.readouterr().err


def test_what_pixels_depend_on_stays(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = picture(size=SIZE).quantize(16)
    colours.save(tmp_path / "palette.png", transparency=3, exif=exif)
    encoded = (tmp_path / "palette.png").read_bytes()
    cleaned = make_decodable(encoded[:33] + PROFILE + encoded[33:], SIZE[0], SIZE[1])
    assert cleaned == make_decodable(encoded, SIZE[0], SIZE[1])
    assert all(kind in cleaned for kind in (b"PLTE", b"tRNS", b"eXIf", b"IEND"))
    assert b"iCCP" not in cleaned


def test_a_plain_image_is_given_as_it_lies(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "bmp", "webp", "tif"):
        encoded = save(tmp_path / f"a.{suffix}", picture(size=SIZE)).read_bytes()
        assert make_decodable(encoded, SIZE[1], SIZE[0]) is encoded, suffix


def test_a_png_whose_chunks_end_early_is_unreadable() -> None:
    whole = png(picture(size=SIZE))
    for length in (len(PNG_SIGNATURE) + 25, 60, len(whole) - 13, len(whole) - 1):
        with pytest.raises(Unreadable, match="it is cut short"):
            make_decodable(whole[:length], SIZE[1], SIZE[0])


def save_gif(path: Path, first: Image.Image) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [picture(seed=at, size=SIZE).quantize(64) for at in (5, 6)]
    first.save(path, save_all=True, append_images=frames, loop=0)
    return path.read_bytes()


@pytest.mark.parametrize("way", ["as it lies", "packed"])
def test_the_first_frame_of_a_gif_is_the_image(tmp_path: Path, way: str) -> None:
    first = picture(seed=1, size=SIZE).quantize(64)
    save_gif(tmp_path / "gif" / "a.gif", first)
    save(tmp_path / "png" / "a.png", first.convert("RGB"))
    if way == "packed":
        options = PackOptions(pack=True)
        job = Job(tmp_path / "gif", tmp_path / "out", options, "stop", 1, NoReport())
        prepare(job)
        index = open_manifest(tmp_path / "out" / "train").index
        bad = BadImages(index, "stop")
        loader = FeatureLoader(index, DataConfig(image_size=32), 4, torch.device("cpu"), bad)
        found = next(iter(loader.batches(np.arange(1)))).images_BCHW.clone()
    else:
        found = images_of(tmp_path / "gif")
    assert torch.equal(found, images_of(tmp_path / "png"))


def test_a_damaged_gif_is_unreadable(tmp_path: Path) -> None:
    encoded = save_gif(tmp_path / "a.gif", picture(seed=1, size=SIZE).quantize(64))
    with pytest.raises(Unreadable, match="damaged or cut short"):
        first_frame(encoded[:900])
