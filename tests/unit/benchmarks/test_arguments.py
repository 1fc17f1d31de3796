"""What a benchmark is told."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.common.harness import add_arguments


@pytest.mark.parametrize("repeats", ["0", "-1", "many"])
def test_less_than_one_repeat_is_refused_before_anything_is_measured(
    repeats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--repeats", repeats])
    assert repeats in capsys.readouterr().err
