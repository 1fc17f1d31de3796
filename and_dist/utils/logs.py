"""Log to standard error: errors of any rank, and as much of rank 0 as is asked for. No torch."""

from __future__ import annotations

import logging
import sys

from and_dist.utils.formatting import safe_lines

LEVELS = ("debug", "info", "warning", "error")


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
