from __future__ import annotations

import json
from typing import Any

import pytest

from and_dist.utils.seals import (
    is_as_written,
    seal,
    seal_line,
    seal_text,
    unseal,
    unseal_line,
)

RECORD = {"event": "step", "loss": 0.1 + 0.2, "rows": [1, 2], "nan": float("inf"), "ü": None}


def test_a_sealed_record_comes_back_without_its_seal() -> None:
    stored = json.loads(json.dumps(seal(RECORD, "a.json")))
    assert list(stored)[-1] == "crc"
    assert unseal(stored, "a.json") == RECORD
    assert seal(stored, "a.json") == stored
    assert unseal(json.loads(json.dumps(seal({3: 1}, "a.json"))), "a.json") == {"3": 1}


@pytest.mark.parametrize("value", [None, 3, [], {}, {"a": 1}])
def test_what_has_no_seal_is_taken_as_it_is(value: Any) -> None:
    assert unseal(value, "a.json") == value


@pytest.mark.parametrize("change", [{"loss": 0.3}, {"more": 1}, {"crc": 1}, {"crc": "00000000"}])
def test_another_content_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not as it was written"):
        unseal(seal(RECORD, "a.json") | change, "a.json")


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="not as it was written"):
        unseal(seal(RECORD, "a.json"), "b.json")


def test_no_flipped_bit_of_a_line_passes() -> None:
    """But in the names of its last two keys, which its reader knows, and in the last brackets."""
    line = seal_line({"event": "step", "loss": 1.5}, 7)
    assert unseal_line(line) == (b'{"event": "step", "loss": 1.5, "line": 7}', 7)
    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = unseal_line(bytes(flipped))
        except ValueError:
            continue
        assert found == (bytes(flipped), None)


def test_a_line_of_an_earlier_revision_has_no_number() -> None:
    assert unseal_line(b'{"event": "step"}\n') == (b'{"event": "step"}\n', None)


def test_a_sealed_text_tells_a_change() -> None:
    text = seal_text("name: a\nseed: 1\n")
    assert text.endswith("\nname: a\nseed: 1\n")
    assert is_as_written(text)
    assert is_as_written("name: a\n")
    for other in (text.replace("1\n", "2\n"), text[:-1], text + "\n"):
        assert not is_as_written(other)


def test_a_sealed_text_tells_that_it_stands_in_the_place_of_another() -> None:
    of_job = seal_text("name: a\n", "job")
    assert is_as_written(of_job, "job")
    assert not is_as_written(of_job)
    assert not is_as_written(seal_text("name: a\n"), "job")
