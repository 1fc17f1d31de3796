"""Threads hold no more together than there is room for, and each of them is let in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from and_dist.utils.room import Room


def test_no_more_is_held_than_there_is_room_for() -> None:
    room, lock = Room(10), threading.Lock()
    held, most, alone = 0, 0, []

    def work(amount: int) -> None:
        nonlocal held, most
        with room.hold(amount):
            with lock:
                held += amount
                most = max(most, held if amount <= 10 else 0)
                if amount > 10:
                    alone.append(held)
            with lock:
                held -= amount

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, [4, 3, 25, 6, 10, 1, 30, 7] * 20))
    assert 0 < most <= 10
    assert sorted(alone) == [25] * 20 + [30] * 20
