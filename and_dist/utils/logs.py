"""Log to standard error: errors of any rank, and as much of rank 0 as is asked for. No torch."""

from __future__ import annotations

import logging
import sys
import sysconfig
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from and_dist.utils.formatting import safe_lines

LEVELS = ("debug", "info", "warning", "error")
log = logging.getLogger(__name__)


class StandardErrorHandler(logging.Handler):
    """Writes to what sys.stderr is at the time, which tests and notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            # A sentence may name what a file of somebody else's holds.
            print(safe_lines(self.format(record)), file=sys.stderr, flush=True)
        except Exception:  # as all handlers of logging: what cannot be logged ends nothing
            self.handleError(record)


def set_up_logging(program: str, level: str, is_rank_zero: bool = True) -> None:
    """Let a program and its packages log from a level on; raise ValueError for an unknown one.

    Ranks other than 0 are silent unless something is wrong.
    """
    if level not in LEVELS:
        raise ValueError(f"--log-level {level} is not one of: {', '.join(LEVELS)}")
    threshold = logging.getLevelName(level.upper())
    handler = StandardErrorHandler()
    handler.setFormatter(logging.Formatter(f"{program}: %(message)s"))
    for name in ("and_dist", "launcher"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold if is_rank_zero else max(threshold, logging.WARNING))
        # Libraries that set up the root logger must not print everything twice.
        logger.propagate = False


class LibraryWarnings:
    """Logs the first warning of each kind that a library gives, and counts those that follow.

    Pillow, for one, has its own words for every image whose EXIF data are damaged.
    """

    def __init__(self) -> None:
        """Start without warnings."""
        self._numbers: Counter[tuple[str, str]] = Counter()

    def show(
        self, message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
    ) -> None:
        """Take a warning as `warnings.showwarning` gets it."""
        library = library_of(filename)
        self._numbers[library, category.__name__] += 1
        if self._numbers[library, category.__name__] == 1:
            log.warning("%s: %s", library, message)

    def log_numbers(self) -> None:
        """Log how many warnings were not shown."""
        for (library, _), number in self._numbers.items():
            if number > 1:
                log.warning("%s: %s more such warnings", library, f"{number - 1:,}")
        self._numbers.clear()


def library_of(filename: str) -> str:
    """Return the name of the installed package that a file belongs to, or the file's own."""
    for place in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        if Path(filename).is_relative_to(place):
            return Path(filename).relative_to(place).parts[0].removesuffix(".py")
    return Path(filename).stem


def count_library_warnings() -> LibraryWarnings:
    """Let the warnings of libraries be logged and counted from now on."""
    counted = LibraryWarnings()
    warnings.showwarning = counted.show
    return counted
