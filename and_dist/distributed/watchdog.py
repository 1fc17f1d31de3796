"""Hear signals, know the time limit, and notice when nothing moves: one thread a process.

Signals reach it through a pipe, so it hears them while the main thread waits in a collective. Until
`watch()` a request to stop ends the process at once: there is nothing to save yet. After it, the
request is a number for all ranks to agree on, and only a second one ends at once. No torch.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from and_dist.distributed.flight_recorder import read_collectives
from and_dist.distributed.launch_env import read_launch_env, seconds_since_start
from and_dist.utils.owned_files import (
    NotOursError,
    is_json_with,
    open_to_append,
    starts_with,
    write_file,
)

TRY_AGAIN = 75
"""The exit status of what ended early and resumes when started again (EX_TEMPFAIL)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ECHO_SECONDS = 3.0
"""Seconds in which more signals count as the same request: a scheduler signals every process, and
torchrun passes signals on."""
TICK_SECONDS = 0.5
SECONDS_BEYOND_STALL = 120.0
"""Seconds by which ranks wait longer for each other than a stall takes to be noticed here."""
LEAST_MARGIN = 5.0

NOTHING, SAVE, TIME_LIMIT, LAUNCHER_GONE, SIGNAL = 0, 1, 2, 3, 64
"""Requests, from the least urgent on; SIGNAL + n is signal n. All but SAVE are to stop."""


class Stopped(Exception):
    """Says that all ranks have agreed to stop, and what is saved."""

    def __init__(self, request: int, what_is_saved: str) -> None:
        """Describe the request and what is saved."""
        super().__init__(f"{describe(request)}, {what_is_saved}")
        # SIGTERM is how torchrun starts ranks anew when a node joins.
        self.ends_the_job = request not in (SIGNAL + signal.SIGTERM, LAUNCHER_GONE)


class Paused(Exception):
    """Says that a disk is full, read-only or broken, and that the run goes on once it is mended."""

    def __init__(self, why: str, is_of_all_ranks: bool) -> None:
        """Say why, and whether all ranks say the same."""
        super().__init__(why)
        self.is_of_all_ranks = is_of_all_ranks


class Watch(NamedTuple):
    """Hold what a run asks the watchdog to look after."""

    folder: Path
    stall_seconds: float
    time_limit: float | None
    """In seconds since the launcher, or this process where there is none, was started."""


class Watchdog:
    """Watches over everything a process does that may be asked to stop."""

    def __init__(self) -> None:
        """Prepare the thread; nothing is watched before `with`."""
        launch_env = read_launch_env()
        self.seconds_to_save = 0.0
        self._rank = launch_env.rank
        self._launcher = None if launch_env.is_alone else os.getppid()
        self._watch: Watch | None = None
        self._heard = NOTHING
        self._first_heard = 0.0
        self._still_seconds = 0.0
        self._last_beat, self._longest_gap = time.monotonic(), 0.0
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="watchdog", daemon=True)
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Watchdog:
        """Take over the signals and start the thread."""
        self._theirs.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._before = {s: signal.signal(s, _leave_it_to_the_thread) for s in SIGNALS}
        # Who started this process may have held signals back until it hears them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back and end the thread."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            # The echo of a request that was carried out is not to end what is ending already.
            signal.signal(number, signal.SIG_IGN if isinstance(error, Stopped) else handler)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def watch(self, folder: Path, stall_seconds: float, time_limit: float | None) -> None:
        """Let requests wait to be carried out from now on, and look for stalls."""
        self._still_seconds, self._last_beat = 0.0, time.monotonic()
        self._watch = Watch(folder, stall_seconds, time_limit)

    def beat(self) -> None:
        """Note that something has moved."""
        now = time.monotonic()
        self._longest_gap = max(self._longest_gap, now - self._last_beat)
        self._still_seconds, self._last_beat = 0.0, now

    def request(self) -> int:
        """Return what this rank has been asked to do, by a signal or by the time limit."""
        if not self._heard and self._watch and self._watch.time_limit is not None:
            margin = LEAST_MARGIN + 2 * self.seconds_to_save + 2 * self._longest_gap
            if seconds_since_start(self._launcher or os.getpid()) > self._watch.time_limit - margin:
                self._heard = TIME_LIMIT
        return self._heard

    def _listen(self) -> None:
        """Wait for signals, and look for stalls and a lost launcher in between."""
        before = time.monotonic()
        while True:
            readable, _, _ = select.select([self._ours], [], [], TICK_SECONDS)
            if readable:
                numbers = self._ours.recv(64)
                if not numbers:
                    return
                self._hear([number for number in numbers if number in SIGNALS])
            now = time.monotonic()
            # While the whole job was suspended this thread was too: that is no stall.
            self._look_for_stall(min(now - before, 2 * TICK_SECONDS))
            before = now
            if self._launcher is not None and os.getppid() != self._launcher:
                self._ask(LAUNCHER_GONE)

    def _hear(self, numbers: list[int]) -> None:
        """Take a signal: a first one is a request, a second one ends the process."""
        for number in numbers:
            now = time.monotonic()
            if self._heard < SIGNAL:
                self._first_heard = now
                self._ask(SIGNAL + number)
            elif now - self._first_heard > ECHO_SECONDS:
                self._end("a second signal: stopped at once, the last checkpoint is whole")

    def _ask(self, request: int) -> None:
        """Note a request; before `watch()` end the process instead."""
        self._heard = max(self._heard, request)
        if self._watch is None:
            self._end(f"stopped by {describe(request)}; the same command goes on")

    def _look_for_stall(self, seconds: float) -> None:
        """End the process if nothing has moved for too long.

        Before, write the stacks of all threads and the last collectives.
        """
        self._still_seconds += seconds
        if self._watch is None or self._still_seconds < self._watch.stall_seconds:
            return
        path = self._watch.folder / "stalls" / f"rank-{self._rank}.txt"
        still = f"nothing has moved for {self._still_seconds:.0f} s"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_to_append(path, starts_with("--- ")) as file:
                file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S %z')}: {still}\n".encode())
                faulthandler.dump_traceback(file.fileno(), all_threads=True)
            if collectives := read_collectives():
                is_ours = is_json_with("backends")
                content = json.dumps({"stalled": still, "backends": collectives})
                write_file(path.with_name(f"rank-{self._rank}-collectives.json"), content, is_ours)
        except (OSError, NotOursError) as error:
            self._end(f"{still}; its stacks cannot be written: {error}")
        self._end(f"{still}; the stacks of all threads are in {path}")

    def _end(self, sentence: str) -> None:
        """End from this thread: nothing is unwound, so nothing waits for a rank that is gone."""
        # Not by logging, whose lock a thread that hangs may hold.
        try:
            cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
            print(f"{cursor}and-dist: rank {self._rank}: {sentence}", file=sys.stderr, flush=True)
        finally:
            os._exit(TRY_AGAIN)  # even if standard error is closed


def describe(request: int) -> str:
    """Name a request in a few words."""
    if request >= SIGNAL:
        return signal.Signals(request - SIGNAL).name
    return {TIME_LIMIT: "the time limit", LAUNCHER_GONE: "the end of its launcher"}[request]


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Do nothing; Python writes only signals with a handler to the pipe."""
