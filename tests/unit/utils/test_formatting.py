"""Names as people may safely see them."""

from __future__ import annotations

import pytest

from and_dist.utils.formatting import as_text, safe_lines


@pytest.mark.parametrize("name", ["a b.png", "é😀👩\u200d🔬", "عربي", "\u202eأبجد", "<b>'\"&amp;"])
def test_text_is_left_as_it_is(name: str) -> None:
    assert as_text(name) == name


@pytest.mark.parametrize("letter", ["\x1b", "\x00", "\r", "\n", "\x9b", "\u2028", "\udcff"])
def test_what_is_no_text_is_replaced(letter: str) -> None:
    assert as_text(f"a{letter}[31mb") == "a\ufffd[31mb"


def test_lines_stay_lines() -> None:
    assert safe_lines("one\ntwo\x1b") == "one\ntwo\ufffd"
