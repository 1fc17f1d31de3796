"""Names as people may safely see them."""

from __future__ import annotations

import pytest

from and_dist.utils.formatting import as_text, elide, pieces_of, safe_lines


@pytest.mark.parametrize("name", ["a b.png", "é😀👩\u200d🔬", "عربي", "\u202eأبجد", "<b>'\"&amp;"])
def test_text_is_left_as_it_is(name: str) -> None:
    assert as_text(name) == name


@pytest.mark.parametrize("letter", ["\x1b", "\x00", "\r", "\n", "\x9b", "\u2028", "\udcff"])
def test_what_is_no_text_is_replaced(letter: str) -> None:
    assert as_text(f"a{letter}[31mb") == "a\ufffd[31mb"


def test_lines_stay_lines() -> None:
    assert safe_lines("one\ntwo\x1b") == "one\ntwo\ufffd"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a/b_c.png", ["a/", "b_", "c.", "png"]),
        ("2024-05-17", ["2024-05-17"]),
        ("2,000 images", ["2,000 images"]),
        ("x=0.25, and-dist", ["x=", "0.25, and-", "dist"]),
        ("word", ["word"]),
        ("", [""]),
    ],
)
def test_text_breaks_behind_signs_and_never_within_a_word(text: str, pieces: list[str]) -> None:
    assert pieces_of(text) == pieces
    assert "".join(pieces_of(text)) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("short.png", "short.png"),
        ("IMG_2024-05-17_holiday_in_the_mountains_0051_final.jpg", "IMG_…mountains_0051_final.jpg"),
        ("Donaudampfschifffahrtsgesellschaft", "Donaudampfschifffahrtsgesellsch…"),
        ("a/" + 50 * "b", "a/…" + 29 * "b"),
        (50 * "a" + "/b.png", 15 * "a" + "…b.png"),
    ],
)
def test_a_long_name_keeps_its_beginning_and_its_end(name: str, shown: str) -> None:
    assert elide(name, 32) == shown
