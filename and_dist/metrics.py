"""metrics.jsonl: what a run writes down of itself. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """One JSON object a line. Only the coordinator has one that writes."""

    def __init__(self, path: Path, is_writer: bool) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8") if is_writer else None

    def go_back_to(self, num_bytes: int) -> int:
        """Forget all lines but the first so many bytes; gives the last step there was."""
        if not self._file:
            return 0
        size = self.path.stat().st_size
        if size < num_bytes:
            raise RuntimeError(
                f"{self.path} has {size:,} bytes, but had {num_bytes:,} when the checkpoint was "
                "made; put it back, or start anew under another name"
            )
        last_step = _last_step(self.path)
        self._file.truncate(num_bytes)
        return last_step

    def write(self, event: str, **values: Any) -> None:
        if self._file:
            self._file.write(json.dumps({"event": event, **values}) + "\n")
            self._file.flush()

    def flushed_size(self) -> int:
        """Bytes that are safely on disk, for a checkpoint to remember."""
        if not self._file:
            return 0
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

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


def _last_step(path: Path) -> int:
    """Of a file whose last line may be torn."""
    last = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith('{"event": "step"') and line.endswith("}\n"):
                last = json.loads(line)["step"]
    return int(last)
