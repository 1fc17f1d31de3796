from __future__ import annotations

from pathlib import Path

import pytest

from tests.pictures import save_pictures
from tests.unit.data.preparing import SIZES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes, JPEG and PNG: a/0.jpg a/1.jpg b/2.jpg b/3.png c/4.jpg c/5.jpg."""
    return save_pictures(tmp_path / "source", SIZES, "abc", ["jpg", "jpg", "jpg", "png"])


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve PNGs, enough for several small parts: a/00.png to b/11.png."""
    return save_pictures(tmp_path / "many", [(24, 18 + n) for n in range(12)], "ab", ["png"])
