"""Start a rank: send its output to RUN/logs/rank-R.log, then replace this process by the rank.

Each rank has a file of its own, so no line is lost or mixed with another's when a process dies.

    python -m launcher.node.rank JOB START and_dist train --config ...
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

from and_dist.distributed.watchdog import TRY_AGAIN
from and_dist.utils.disk_errors import DiskError, naming_disk
from and_dist.utils.owned_files import make_folder, open_to_append
from launcher.jobs.job_folder import is_log, start_folder
from launcher.node.placement import job_id_of

STOP = "stop"
"""The file in a start's folder that tells ranks to end which start after the signal, and so never
receive it."""


def log_of(run: Path, rank: int) -> Path:
    """Return the path of a rank's log."""
    return run / "logs" / f"rank-{rank}.log"


def main() -> None:
    """Redirect the output, write the start's mark, and execute the rank's command."""
    job, start, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    rank = int(os.environ["RANK"])
    log = log_of(job.parents[1], rank)
    try:
        make_folder(log.parent)
        into = open_to_append(log, is_log)
        with naming_disk(log):
            os.write(into.fileno(), f"{mark(job, start, rank)}\n".encode())
    except DiskError as error:
        print(f"and-launch: rank {rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(TRY_AGAIN)
    os.dup2(into.fileno(), 1)
    os.dup2(into.fileno(), 2)
    if (start_folder(job, start) / STOP).exists():
        print("told to end before it started", flush=True)
        sys.exit(TRY_AGAIN)
    os.execv(sys.executable, [sys.executable, "-m", *command])


def mark(job: Path, start: int, rank: int) -> str:
    """Return the line that opens a start in the log of a rank."""
    environ = os.environ
    return (
        f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} job {_job_id(job)}, "
        f"start {start}: rank {rank} of {environ['WORLD_SIZE']} on {platform.node()}, "
        f"local rank {environ['LOCAL_RANK']} of {environ['LOCAL_WORLD_SIZE']}, "
        f"meeting at {environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
    )


def _job_id(job: Path) -> str:
    return job_id_of() if "SLURM_JOB_ID" in os.environ else job.name


if __name__ == "__main__":
    main()
