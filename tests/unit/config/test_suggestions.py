"""Suggest the key or name that somebody may have meant."""

from __future__ import annotations

import pytest

from and_dist.config.load import load_config
from and_dist.config.reference import describe_keys
from and_dist.config.schema import Config
from and_dist.config.suggestions import near_keys


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("lr", "optim.lr"),
        ("epochs", "curriculum.epochs"),
        ("optim.momentun", "optim.momentum"),
        ("bnak.dtype", "bank.dtype"),
        ("batchsize", "optim.batch_size"),
        ("optim.batch-size", "optim.batch_size"),
        ("data.imagesize", "data.image_size"),
    ],
)
def test_the_key_that_was_meant_comes_first(given: str, meant: str) -> None:
    assert near_keys(given, Config)[0] == meant


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert near_keys("xyzzy", Config) == []
    with pytest.raises(ValueError, match=r"takes: name.*, run$"):
        load_config([], ["xyzzy=1"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learning_rate=1", r"; did you mean optim\.lr or optim\.lr_per_256 or evaluation\."),
        ("method=instnce", r"; did you mean instance\?$"),
        ("name=-x", r"name = '-x' will not do: it takes letters, digits, dots, dashes and"),
    ],
)
def test_a_message_ends_with_the_way_out(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config([], [override])


def test_every_key_is_described_with_its_default() -> None:
    described = {one.key: one for one in describe_keys()}
    assert described["optim.lr"].takes == "number > 0"
    assert described["optim.lr"].default == "0.03"
    assert described["discovery.memory_mb"].takes == "whole number >= 64 and <= 100,000,000 or auto"
    assert described["data.limit"].takes == "whole number >= 1 and <= 1,000,000,000,000 or null"
    assert described["data.mean"].takes == "3 of number > 0 and <= 1,000"
    assert described["data.flip"].takes == "true | false"
    assert described["evaluation.linear.epochs"].default == "90"
    assert all(one.meaning for one in described.values())
