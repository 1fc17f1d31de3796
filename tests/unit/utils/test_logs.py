from __future__ import annotations

import logging
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from and_dist.utils.logs import count_library_warnings, set_up_logging

log = logging.getLogger("and_dist.somewhere")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("and_dist", "launcher")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def say_everything() -> None:
    log.debug("trying %d", 1)
    log.info("saving")
    log.warning("slow")
    log.error("broken")


@pytest.mark.parametrize(
    ("level", "is_rank_zero", "expected"),
    [
        ("debug", True, ["trying 1", "saving", "slow", "broken"]),
        ("info", True, ["saving", "slow", "broken"]),
        ("info", False, ["slow", "broken"]),
        ("error", False, ["broken"]),
    ],
)
def test_other_ranks_are_silent_unless_something_is_wrong(
    level: str, is_rank_zero: bool, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging("and-dist", level, is_rank_zero)
    say_everything()
    out, error = capsys.readouterr()
    assert out == ""
    assert error.splitlines() == [f"and-dist: {text}" for text in expected]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="--log-level loud is not one of: debug, info, warning"):
        set_up_logging("and-dist", "loud")


def test_a_sentence_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("and-dist", "info")
    log.error("cannot read %s", "\x1b[2Jconfig\x07")
    assert capsys.readouterr().err == "and-dist: cannot read \ufffd[2Jconfig\ufffd\n"


def test_a_librarys_warnings_are_counted_after_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    set_up_logging("and-dist", "warning")
    library = Path(sysconfig.get_path("purelib"), "PIL", "Image.py")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        counted = count_library_warnings()
        for at in range(3):
            warnings.warn_explicit(f"tag {at} is odd", UserWarning, str(library), 7)
        warnings.warn_explicit("no such thing", RuntimeWarning, "/elsewhere/own_loop.py", 7)
    counted.log_numbers()
    counted.log_numbers()
    assert capsys.readouterr().err.splitlines() == [
        "and-dist: PIL: tag 0 is odd",
        "and-dist: own_loop: no such thing",
        "and-dist: PIL: 2 more such warnings",
    ]
