"""Record what a run does: in metrics.jsonl, in its trackers, and on the console."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from and_dist.config.schema import Config
from and_dist.runs.console import Display
from and_dist.runs.folder import read_starts
from and_dist.runs.goodput import CAUSES, Tally, goodput, read_decisions
from and_dist.runs.metrics_file import Forgotten, MetricsFile, stream
from and_dist.runs.trackers import Trackers


class RunRecorder:
    """Records events; every rank calls it, and the coordinator's alone writes."""

    def __init__(self, config: Config, display: Display, is_writer: bool) -> None:
        """Open metrics.jsonl on the coordinator."""
        self.metrics = MetricsFile(config.folder / "metrics.jsonl", is_writer)
        self.display = display
        self._trackers = Trackers(config, display.say) if is_writer else None
        self._tally = Tally()

    @property
    def path(self) -> Path:
        """Return the path of metrics.jsonl."""
        return self.metrics.path

    @property
    def shows_pictures(self) -> bool:
        """Return whether this rank writes a tracker, which shows the pictures of a run."""
        return self._trackers is not None and self._trackers.are_wanted

    def write(self, event: str, **values: Any) -> None:
        """Record an event with its figures."""
        record = {"event": event, "time": round(time.time(), 3), **values}
        self.metrics.write(record)
        self._tally.add(record)
        self.display.record(record)
        if self._trackers:
            self._trackers.write(record)

    def go_back_to(self, num_bytes: int, num_lines: int | None = None) -> Forgotten:
        """Forget all lines but the first ones; return how far they had come."""
        forgotten = self.metrics.go_back_to(num_bytes, num_lines)
        if self._trackers:
            self._trackers.begin(stream(self.path))
            self.display.recall(stream(self.path))
            self._tally = Tally(stream(self.path))
        return forgotten

    def write_goodput(self) -> None:
        """Record the goodput of the run so far, and what the rest of its time was lost to."""
        run = self.path.parent
        if found := goodput(read_starts(run), self._tally, read_decisions(run)):
            lost = {cause: round(found.lost.get(cause, 0.0), 3) for cause in CAUSES}
            self.write("goodput", share=found.share, total=found.seconds, **lost)

    def flush(self) -> None:
        """Put everything on the disk; any thread may call it."""
        self.metrics.flush()
        if self._trackers:
            self._trackers.flush()

    def close(self) -> None:
        """Close the file and the trackers."""
        self.metrics.close()
        if self._trackers:
            self._trackers.close()
