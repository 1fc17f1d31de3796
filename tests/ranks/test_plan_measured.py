"""What `and-dist plan` predicts, beside what real ranks take on this machine."""

from __future__ import annotations

from benchmarks.plan import HELD, WORLDS, compare_memory


def test_memory_is_predicted_within_a_tenth() -> None:
    compared = compare_memory(HELD, WORLDS)
    wrong = {at: memory for at, memory in compared.items() if abs(memory.error) > 0.1}
    assert not wrong
    assert len(compared) == 2 * len(HELD) * len(WORLDS)
