"""Launchers that are killed, whose nodes save and end, and ranks that are killed in the cache."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.attack.disks.commands import (
    LOCAL,
    RUN,
    TRAIN_CACHE_2,
    Command,
    left_running,
    run,
)
from tests.attack.disks.faults import Fault, Injection
from tests.attack.disks.judge import (
    SECONDS_TO_END,
    judge_end,
    judge_second_run,
    new_in_shared_memory,
    scene_folder,
    shared_names,
)

LONG = ("curriculum.epochs=60", "run.save_minutes=60")
LONG_LOCAL = replace(LOCAL, name="local, longer", command=(*LOCAL.command, *LONG))


def lose_launcher(seconds: float, folder: Path) -> str:
    """Kill and-launch local after some seconds: all it started saves and ends, and goes on."""
    place = scene_folder(LONG_LOCAL, folder)
    command = Command(LONG_LOCAL, place)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(command.pid, signal.SIGKILL)
    was_done = command.finish().status != -signal.SIGKILL
    if left := left_running(place, SECONDS_TO_END):
        return f"{len(left)} processes were left behind"
    if not was_done and (place / RUN / "summary.json").exists():
        return "the ranks trained to the end without their launcher"
    if (place / RUN / "metrics.jsonl").exists() and not was_done:
        said = (place / RUN / "logs" / "rank-0.log").read_text(errors="replace")
        if "Traceback" in said:
            return f"a rank ended in a traceback: {said[-500:]}"
        if "saved as" not in said and '"step"' in (place / RUN / "metrics.jsonl").read_text():
            return f"no rank said that it saved: {said[-500:]}"
    return judge_second_run(LONG_LOCAL, place)


def kill_in_the_cache(kinds: str, first: int, folder: Path) -> str:
    """Kill a rank in a call at the cache's memory: nothing of it is left."""
    fault = Fault(-signal.SIGKILL, first, place="/dev/shm/", kinds=kinds)
    injection = Injection(fault, scene_folder(TRAIN_CACHE_2, folder))
    before = shared_names()
    ended = run(TRAIN_CACHE_2, injection.folder, injection.environment())
    broke = judge_end(TRAIN_CACHE_2, ended, fault.error) or new_in_shared_memory(before)
    return broke or judge_second_run(TRAIN_CACHE_2, injection.folder)
