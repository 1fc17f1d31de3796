"""metrics.jsonl: what a run writes down of itself. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """One JSON object a line. Only the coordinator has one that writes."""

    def __init__(self, path: Path, keep_bytes: int, is_writer: bool) -> None:
        """Continue a file from where its checkpoint left it; later lines are forgotten."""
        self.path = path
        self._file = None
        if is_writer:
            path.touch()
            os.truncate(path, keep_bytes)
            self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        if self._file:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()

    def flushed_size(self) -> int:
        """Bytes that are safely on disk, for a checkpoint to remember."""
        if not self._file:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def read(self, event: str) -> list[dict[str, Any]]:
        return read_metrics(self.path, event)

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_metrics(path: Path, event: str) -> list[dict[str, Any]]:
    """All lines of one kind, in order."""
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [record for record in records if record["event"] == event]
