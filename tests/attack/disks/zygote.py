"""python -m tests.attack.disks.zygote: fork a process for each command that a line of input names.

It has imported all that a command needs, under the library of faults.c, so that a command begins at
once. A line of input is the JSON of a command, and is followed by two lines of output: its pid, and
the exit status once it has ended.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.rank_pool import PRELOAD

TORCHRUN = ("--standalone", "--nproc-per-node=2", "-m", "and_dist")


def main() -> None:
    """Import everything, then fork."""
    for module in (*PRELOAD, "and_dist.cli", "launcher.cli", "torch.distributed.run"):
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(asked)
            return
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    os._exit(0)  # nothing that was imported has to end well


def become(asked: Mapping[str, Any]) -> None:
    """Be the process of a command, whose end is this one's."""
    os.setsid()
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    # Processes of the command's own begin from nothing, as they do for a user.
    multiprocessing.set_forkserver_preload([])
    program, *arguments = asked["command"]
    sys.argv = [program, *(TORCHRUN if program == "torchrun" else ()), *arguments]
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - the zygote's has other buffers
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if program == "torchrun":
        from torch.distributed.run import main as torchrun

        torchrun()  # its own traceback passes through no file of ours
        return
    from and_dist.utils.exits import run_and_leave

    run_and_leave(main_of(program))


def main_of(program: str) -> Callable[[], None]:
    """Return the function that runs a program."""
    if program == "and-dist":
        from and_dist.cli import main as and_dist

        return and_dist
    from launcher.cli import main as and_launch

    return and_launch


if __name__ == "__main__":
    main()
