"""python -m tests.faults --trials N --seed S [--json FILE]

The fault campaign: real torchrun workers train a small run, one of them or all are killed, told to
stop or frozen at a chosen kind of moment, and the same command is given again until it is done.
Then weights, momentum, bank, table and metrics have to equal an undisturbed run's to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.ranks.runs import checkpoint_of, metrics_of

RANKS = 2
MOST_STARTS = 6
SECONDS_A_START = 60
HUNG = -1
"""In place of an exit status."""
MOST_DRAWS = 5
"""A fault may come too late for its run, or hit a process that has just ended: it is drawn anew."""
SETTINGS = (
    "data.limit=400", "data.limit_test=200", "optim.batch_size=32", "curriculum.epochs=2",
    "optim.milestones=[1]", "run.threads=1", "run.keep=2", "run.save_minutes=0.005",
)  # fmt: skip


@dataclass
class Trial:
    """One fault, and what became of it."""

    fault: str
    moment: str
    is_struck: bool = False
    starts: int = 0
    exits: list[int] = field(default_factory=list)
    is_finished: bool = False
    is_equal: bool = False
    steps_again: int = 0
    recovery_s: float | None = None
    """From the fault to the first step that a later start has logged."""
    difference: str = ""


class Run:
    """A torchrun agent and its workers, training in a folder."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / name
        self.log = root / f"{name}.log"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        self._command = [
            *launcher, f"--nproc-per-node={RANKS}", "--max-restarts=2", "-m", "and_dist", "train",
            "--config", "configs/debug.yaml", f"run.root={root}", f"name={name}", *SETTINGS,
        ]  # fmt: skip
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def workers(self) -> list[int]:
        assert self.agent is not None
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        return [pid for pid in pids if b"and_dist" in _command_of(pid)]

    def is_running(self) -> bool:
        return self.agent is not None and self.agent.poll() is None

    def wait(self) -> int:
        """Exit status; whatever is left is killed first if it takes too long."""
        assert self.agent is not None
        try:
            return self.agent.wait(SECONDS_A_START)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.agent.wait()
            return HUNG

    def kill_all(self) -> bool:
        assert self.agent is not None
        return self.is_running() and _signal([self.agent.pid, *self.workers()], signal.SIGKILL)

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def num_starts(self) -> int:
        path = self.folder / "environment.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    def last_step(self) -> int:
        return max((event.get("step", 0) for event in self.events()), default=0)


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _signal(pids: list[int], *numbers: signal.Signals) -> bool:
    """False if there was nobody left to hear one."""
    heard = False
    for pid in pids:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                heard = True
    return heard


def kill_worker(run: Run, chance: random.Random) -> bool:
    workers = run.workers()
    return bool(workers) and _signal([chance.choice(workers)], signal.SIGKILL)


def kill_all(run: Run, chance: random.Random) -> bool:
    del chance
    return run.kill_all()


def end_agent(run: Run, chance: random.Random) -> bool:
    del chance
    assert run.agent is not None
    return run.is_running() and _signal([run.agent.pid], signal.SIGTERM)


def warn_workers(run: Run, chance: random.Random) -> bool:
    """As a scheduler does before a time limit."""
    return _signal(run.workers(), chance.choice([signal.SIGUSR1, signal.SIGUSR2]))


def freeze_worker(run: Run, chance: random.Random) -> bool:
    workers = run.workers()
    if not workers:
        return False
    pid = chance.choice(workers)
    _signal([pid], signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 4))
    return _signal([pid], signal.SIGCONT)


def kill_agent(run: Run, chance: random.Random) -> bool:
    """Its workers find themselves alone, and are to end by themselves."""
    del chance
    assert run.agent is not None
    workers = run.workers()
    if not run.is_running() or not _signal([run.agent.pid], signal.SIGKILL):
        return False
    deadline = time.monotonic() + SECONDS_A_START
    while any(_command_of(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers live on without their agent"
        time.sleep(0.05)
    return True


FAULTS: dict[str, Callable[[Run, random.Random], bool]] = {
    "SIGKILL to a worker": kill_worker,
    "SIGKILL to all": kill_all,
    "SIGTERM to the agent": end_agent,
    "SIGUSR to the workers": warn_workers,
    "SIGSTOP for a while": freeze_worker,
    "SIGKILL to the agent": kill_agent,
}
"""Each says whether it has struck."""


def during_training(run: Run, chance: random.Random) -> bool:
    wanted = chance.randint(1, 70)
    return _wait(run, lambda: any(e.get("step", 0) >= wanted for e in run.events()))


def during_saving(run: Run, chance: random.Random) -> bool:
    earlier = chance.randint(0, 12)
    names: set[str] = set()

    def is_saving() -> bool:
        names.update(path.name for path in (run.folder / "checkpoints").glob(".*.unfinished"))
        return len(names) > earlier

    return _wait(run, is_saving, 0.0005)


def during_evaluation(run: Run, chance: random.Random) -> bool:
    """Right after the last epoch of a round, or before the first: the baselines."""
    round_index = chance.choice([-1, 0, 1, 2])
    is_there = _wait(
        run,
        lambda: (
            any(
                e["event"] == "epoch" and e["round"] == round_index and e["epoch"] == 1
                for e in run.events()
            )
            or (round_index < 0 and (run.folder / "metrics.jsonl").exists())
        ),
        0.001,
    )
    time.sleep(chance.uniform(0, 0.05))
    return is_there


def during_discovery(run: Run, chance: random.Random) -> bool:
    round_index = chance.choice([0, 1])
    is_there = _wait(
        run,
        lambda: any(e["event"] == "round" and e["round"] == round_index for e in run.events()),
        0.001,
    )
    time.sleep(chance.uniform(0, 0.03))
    return is_there


def during_start(run: Run, chance: random.Random) -> bool:
    _wait(run, lambda: len(run.workers()) == RANKS)
    time.sleep(chance.uniform(0, 6))
    return run.is_running()


MOMENTS: dict[str, Callable[[Run, random.Random], bool]] = {
    "training": during_training,
    "save": during_saving,
    "evaluation": during_evaluation,
    "discovery": during_discovery,
    "start": during_start,
}


def _wait(run: Run, is_time: Callable[[], bool], pause: float = 0.005) -> bool:
    """False if the run ends first."""
    while run.is_running():
        if is_time():
            return bool(run.workers())
        time.sleep(pause)
    return False


def carry_out(trial: Trial, root: Path, name: str, chance: random.Random, whole: Run) -> None:
    """Start, disturb once, start again until the run is done, compare."""
    run = Run(root, name)
    run.start()
    trial.starts = 1
    if MOMENTS[trial.moment](run, chance):
        trial.is_struck = FAULTS[trial.fault](run, chance)
        trial.exits.append(_until_done(trial, run, time.monotonic(), run.num_starts()))
    else:
        trial.exits.append(run.wait())
    trial.is_finished = trial.exits[-1] == 0 and HUNG not in trial.exits
    if trial.is_finished:
        trial.difference = difference(run.folder, whole.folder)
        trial.is_equal = not trial.difference
        starts = json.loads((run.folder / "environment.json").read_text())
        trial.steps_again = sum(start.get("steps_again", 0) for start in starts)


def _until_done(trial: Trial, run: Run, struck: float, starts_before: int) -> int:
    """Exit status of the last start; watches for the first step of a later one."""
    while True:
        step: int | None = None
        deadline = time.monotonic() + SECONDS_A_START
        while run.is_running() and trial.recovery_s is None and time.monotonic() < deadline:
            if run.num_starts() > starts_before:
                now = run.last_step()
                if step is not None and now > step:
                    trial.recovery_s = time.monotonic() - struck
                step = now
            time.sleep(0.02)
        status = run.wait()
        if status == 0 or trial.starts == MOST_STARTS:
            return status
        trial.exits.append(status)
        run.start()
        trial.starts += 1


def difference(ours: Path, theirs: Path) -> str:
    """What is not equal to the bit, in a few words."""
    metrics, expected = metrics_of(ours), metrics_of(theirs)
    for mine, other in zip(metrics, expected, strict=False):
        if mine != other:
            return f"metrics: {mine} instead of {other}"
    if len(metrics) != len(expected):
        return f"{len(metrics)} lines of metrics instead of {len(expected)}"
    tensors, wanted = checkpoint_of(ours), checkpoint_of(theirs)
    if tensors.keys() != wanted.keys():
        return f"tensors {sorted(tensors.keys() ^ wanted.keys())}"
    for name, tensor in tensors.items():
        if not torch.equal(tensor.nan_to_num(7.0), wanted[name].nan_to_num(7.0)):
            return f"tensor {name}"
    return ""


def run_campaign(num_trials: int, seed: int, root: Path) -> dict[str, Any]:
    whole = Run(root, "undisturbed")
    whole.start()
    if whole.wait() != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{whole.log.read_text()}")
    num_steps = whole.last_step()
    chance = random.Random(seed)
    pairs = [(fault, moment) for fault in FAULTS for moment in MOMENTS]
    order = [pair for _ in range(-(-num_trials // len(pairs))) for pair in chance.sample(pairs, 30)]
    trials = [Trial(*pair) for pair in order[:num_trials]]
    for number, trial in enumerate(trials):
        for draw in range(MOST_DRAWS):
            name = f"trial{number:03}-{draw}"
            carry_out(trial, root, name, random.Random(f"{seed}/{number}/{draw}"), whole)
            if trial.is_struck or not trial.is_equal:
                break
            trials[number] = trial = Trial(trial.fault, trial.moment)
        print(f"{number + 1}/{num_trials} {_in_one_line(trial)}", flush=True)
        if trial.is_equal:
            shutil.rmtree(root / name)
    return _figures(trials, num_steps, seed)


def _in_one_line(trial: Trial) -> str:
    recovery = "" if trial.recovery_s is None else f", next step after {trial.recovery_s:.1f} s"
    outcome = "equal" if trial.is_equal else trial.difference or "NOT FINISHED"
    outcome += "" if trial.is_struck else " BUT NOT STRUCK"
    return (
        f"{trial.fault}, {trial.moment}: {outcome}, exits {trial.exits}, "
        f"{trial.steps_again} steps again{recovery}"
    )


def _figures(trials: list[Trial], num_steps: int, seed: int) -> dict[str, Any]:
    again = sum(trial.steps_again for trial in trials)
    useful = num_steps * len(trials)
    recoveries = [trial.recovery_s for trial in trials if trial.recovery_s is not None]
    return {
        "trials": len(trials),
        "struck": sum(trial.is_struck for trial in trials),
        "finished": sum(trial.is_finished for trial in trials),
        "equal": sum(trial.is_equal for trial in trials),
        "goodput": useful / (useful + again),
        "recovery_s": statistics.median(recoveries) if recoveries else None,
        "longest_recovery_s": max(recoveries, default=None),
        "steps_a_run": num_steps,
        "faults": Counter(trial.fault for trial in trials),
        "moments": Counter(trial.moment for trial in trials),
        "seed": seed,
        "each": [asdict(trial) for trial in trials],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run_campaign(given.trials, given.seed, Path(folder))
    text = json.dumps(figures, indent=1)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "each"}, indent=1))
    sys.exit(0 if figures["equal"] == figures["struck"] == figures["trials"] else 1)


if __name__ == "__main__":
    main()
