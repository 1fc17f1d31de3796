"""Names in pictures: in a font that has their letters, or by code points, and never as boxes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from and_dist.evaluation import lettering
from and_dist.evaluation.lettering import JOINERS, SHIPPED, Font, choose_font, fit, list_fonts

SIZE, WIDE = 12, 10_000
FOREIGN = "猫の写真"


@pytest.fixture(autouse=True)
def no_fonts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A machine whose folders of fonts are empty, as a compute node's often are."""
    empty = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_DATA_DIRS", "HOME"):
            patch.setenv(name, str(empty))
        forget()
        yield patch
    forget()


def forget() -> None:
    for cached in (lettering.machine_fonts, lettering.open_font, lettering.shipped_font):
        cached.cache_clear()


def written(text: str, width: int = WIDE, lines: int = 1) -> list[str]:
    return [line.text for line in fit(text, width, SIZE, lines)]


@pytest.mark.parametrize(
    "name",
    ["İstanbul’da œuvre.png", "Ωμέγα ☺.jpg", "кошка ёж.png", "صورة قطة", "Հայերեն", "ქართული"],
)
def test_letters_of_the_font_that_is_shipped_are_drawn_as_they_are(name: str) -> None:
    assert written(name) == [name]


def test_letters_of_no_font_are_written_as_code_points() -> None:
    assert written("猫.png") == ["[U+732B].png"]
    assert written("a猫写b犬.png") == ["a[U+732B U+5199]b[U+72AC].png"]
    assert written("👩\u200d🚀\ufe0f.png") == ["[U+1F469 U+1F680].png"]


def test_what_controls_the_direction_of_text_is_written_as_a_code_point() -> None:
    assert written("\u202egnp.exe") == ["[U+202E]gnp.exe"]


def test_what_is_no_text_is_one_sign_each() -> None:
    assert written("a\nb\t\x1b\udcff") == ["a\ufffdb\ufffd\ufffd\ufffd"]


def test_a_font_of_the_machine_is_taken_that_has_all_letters(
    no_fonts: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pillow's own font, which has Latin letters alone, stands in for the one that is shipped."""
    latin = tmp_path / "latin.ttf"
    latin.write_bytes(ImageFont.load_default(SIZE).font_bytes)
    no_fonts.setattr(lettering, "SHIPPED", latin)
    assert written("Ωμέγα") == ["[U+03A9 U+03BC U+03AD U+03B3 U+03B1]"]
    folder = tmp_path / "share" / "fonts" / "truetype"
    folder.mkdir(parents=True)
    (folder / "aaa.ttf").write_bytes(b"no font")
    shutil.copy(SHIPPED, folder / "greek.ttf")
    shutil.copy(SHIPPED, folder / "aBold.otf")
    no_fonts.setenv("XDG_DATA_DIRS", str(tmp_path / "share"))
    forget()
    assert list_fonts() == (folder / "aaa.ttf", folder / "greek.ttf", folder / "aBold.otf")
    assert written("Ωμέγα") == ["Ωμέγα"]
    assert choose_font("Ωμέγα", SIZE) is lettering.open_font(folder / "greek.ttf", SIZE)
    assert choose_font("Latin", SIZE) is lettering.shipped_font(SIZE)
    assert written("Ω猫") == ["Ω[U+732B]"], "no font has both, and one has more than none"


@given(st.text(max_size=60), st.integers(100, 200), st.integers(1, 3))
def test_any_text_fits_without_a_missing_letter(text: str, width: int, lines: int) -> None:
    font = Font(SHIPPED, SIZE)
    found = fit(text, width, SIZE, lines)
    assert 1 <= len(found) <= lines
    for line in found:
        assert line.width <= width
        assert all(letter in JOINERS or font.has(letter) for letter in line.text)


def test_a_long_name_keeps_its_start_and_its_end() -> None:
    (line,) = written("a" * 200 + "_0001.png", 120)
    assert line.startswith("aaaa")
    assert "…" in line
    assert line.endswith("001.png")


def test_a_line_ends_at_a_gap_where_there_is_one() -> None:
    assert written("several megapixels.jpg", 124, 2) == ["several megapixels.", "jpg"]
    assert written("cross-shaped figures of it", 128, 2) == ["cross-shaped figures", "of it"]
    assert written("x" * 30, 124, 2) == ["x" * 17, "x" * 13]


def test_marks_are_not_cut_from_their_letter() -> None:
    lines = written("e\u0301" * 40, 100, 2)
    assert not any(line.startswith("\u0301") or "…\u0301" in line for line in lines)


def test_a_text_of_a_million_letters_is_cut_at_once() -> None:
    (line,) = written("x" * 1_000_000 + ".png", 120)
    assert line.endswith(".png")
