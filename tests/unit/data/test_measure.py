from __future__ import annotations

from pathlib import Path

import pytest

from and_dist.data.importers import find_listings
from and_dist.data.importers.listing import Pixels
from and_dist.data.measure import measure
from tests.pictures import encode, tar_of, write


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
