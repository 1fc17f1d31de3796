"""Pickles of others: plain values come out as Python reads them, all else is refused, not run."""

from __future__ import annotations

import collections
import contextlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_dist.utils.pickled_names import Name, PickleError
from and_dist.utils.plain_pickle import read_pickle
from tests.unit.data.importers.cifar import cifar_batch

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner, inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text("abc") | st.integers(), inner)
    ),
    max_leaves=20,
)
PROTOCOLS = st.integers(0, 2)


@given(PLAIN, PROTOCOLS)
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    found, length = read_pickle(content + b"what follows")
    assert length == len(content)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "f4", "f8", "?"])
def test_arrays_are_read(dtype: str, order: Any, protocol: int) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype, order=order)
    both = collections.OrderedDict([("a", array), ("b", array[:0])])
    found, _ = read_pickle(pickle.dumps([both, array], protocol))
    assert found[0]["a"] is found[1]
    np.testing.assert_array_equal(found[1], array)
    assert found[1].dtype == array.dtype
    assert found[0]["b"].shape == (0, 3, 4)


def test_what_python_2_wrote_is_read() -> None:
    found, _ = read_pickle(cifar_batch(slice(0, 3)))
    expected = pickle.loads(cifar_batch(slice(0, 3)), encoding="bytes")
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found[b"data"], expected[b"data"])
    assert found[b"labels"] == expected[b"labels"]
    assert read_pickle(b"S'a\\x00\\'b'\n.")[0] == b"a\x00'b"


def test_a_value_may_hold_itself_and_be_nested_deeply() -> None:
    loop: list[Any] = []
    loop.append(loop)
    found, _ = read_pickle(pickle.dumps(loop, 2))
    assert found[0] is found
    read_pickle(b"]" * 200_000 + b"a" * 199_999 + b".")
    read_pickle(b")" + b"\x85" * 200_000 + b".")


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
TYPE = b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "names os.system"),
        (b"cbuiltins\ngetattr\n.", "names builtins.getattr"),
        (b"cnumpy\nndarray\n(I9\ntR.", "calls what cannot be called"),
        (b"I1\n(tR.", "calls what cannot be called"),
        (b"cnumpy\ndtype\nI1\nR.", "calls numpy.dtype without arguments"),
        (b"(ios\nsystem\n.", "b'i' at byte 1, which is not read here"),
        (b"\x80\x04.", "protocol 4"),
        (b"(cos\nsystem\no.", "names os.system"),
        (b"\x82\x01.", "not read here"),
        (b"cnumpy\ndtype\n(U\x01OI0\nI1\ntR.", "an array of a type that is none of"),
        (b"cnumpy\ndtype\n(" + b")" + b"\x85" * 200_000 + b"tR.", "a type that is none of"),
        (TYPE + b"(I3\nU\x01>NNNI-1\nI-1\nI0\ntb.", "an array of an unknown kind"),
        (ARRAY + b".", "no value where it wants one"),
        (ARRAY + b"(I1\n(I9\nt" + TYPE + b"I00\nU\x02abtb.", "2 bytes for an array of shape"),
        (ARRAY + b"(I1\n(I-2\nt" + TYPE + b"I00\nU\x02abtb.", "whose shape is none"),
        (ARRAY + b"(I1\n(I2\nt" + TYPE + b"I00\nI7\ntb.", "type or content is none"),
        (ARRAY + b"(I1\n(I2\nt" + b"I7\nI00\nU\x02abtb.", "type or content is none"),
        (ARRAY + b"q\x01(I1\nh\x01tb.", "no value where it wants one"),
        (b"cnumpy\nndarray\n}S'a'\nI1\nsb.", "changes what cannot be changed"),
        (b"0.", "damaged at byte 1"),
        (b"c__builtin__\nbytes\n(I9999999999\ntR.", "makes bytes of something"),
        (b"I1\nQ.", "wants a value from outside"),
        (b"h\x05.", "value 5, which it has not kept"),
        (b"(q\x01.", "keeps no value"),
        (b"I1\nI2\n.", "leaves 2 values"),
        (b"", "cut short"),
        (b"X\xff\xff\xff\x7fabc.", "cut short"),
        (b"T\xff\xff\xff\xffabc.", "cut short"),
        (b"L" + b"9" * 5000 + b"L\n.", "number of 5000 digits"),
        (b"\x8b\xff\xff\xff\x7f.", "number of 2147483647 bytes"),
        (b"Iseven\n.", "damaged"),
        (b"]I1\n}ss.", "no dict where it wants one"),
        (b"(](K\x01eK\x01d.", "neither text nor a number"),
        (b"(K\x01d.", "a key without a value"),
        (b"Sabc\n.", "string without quotes"),
    ],
)
def test_what_is_no_plain_value_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(PickleError, match=sentence):
        read_pickle(content)


def test_a_name_has_the_meaning_that_it_is_given() -> None:
    pair = Name("fractions", "Fraction")
    content = b"cfractions\nFraction\n(I1\nI2\ntR."
    assert read_pickle(content, {pair: tuple})[0] == (1, 2)
    with pytest.raises(PickleError, match=r"names fractions\.Fraction"):
        read_pickle(content)
    with pytest.raises(PickleError, match="calls what cannot be called"):
        read_pickle(content, mentioned=frozenset({pair}))


@given(st.data())
def test_bent_pickles_are_read_or_refused(data: st.DataObject) -> None:
    """Whatever the bytes are, nothing but PickleError comes out, and nothing takes long."""
    content = bytearray(data.draw(st.sampled_from([cifar_batch(slice(0, 1))[:400], CHECKPOINT])))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PickleError):
        read_pickle(bytes(content))


CHECKPOINT = pickle.dumps({"net": collections.OrderedDict(a=np.zeros(3)), "acc": 0.5, "of": [1]}, 2)
