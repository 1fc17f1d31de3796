"""Read torch's record of the last collectives: which this rank has entered, and which have ended.

When ranks wait for each other, their records show which rank has left the order. No torch: a
process that has not loaded it has no collectives.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

SIZE_VARIABLE, NUM_COLLECTIVES = "TORCH_FR_BUFFER_SIZE", "2000"
"""The variable by which torch's process groups record, and how many collectives they keep."""
SECONDS_TO_READ = 5.0
"""The longest wait for a record; a driver that hangs may never give it."""


def switch_on() -> None:
    """Let the process groups that are made from now on record, unless a user has set how many."""
    os.environ.setdefault(SIZE_VARIABLE, NUM_COLLECTIVES)


def read_collectives() -> dict[str, Any]:
    """Return what each backend has recorded, by its name; empty if there is nothing to be had."""
    found: dict[str, Any] = {}
    reader = threading.Thread(target=_read_into, args=(found,), name="flight recorder", daemon=True)
    reader.start()
    reader.join(SECONDS_TO_READ)
    return dict(found)


def _read_into(found: dict[str, Any]) -> None:
    """Add the records of gloo and of NCCL, where torch is loaded and was built with them."""
    c10d = sys.modules.get("torch._C._distributed_c10d")
    for backend, name in (("gloo", "_dump_fr_trace_json"), ("nccl", "_dump_nccl_trace_json")):
        if dump := getattr(c10d, name, None):
            record = json.loads(dump())
            if record.get("entries"):
                found[backend] = record
