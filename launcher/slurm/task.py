"""Run a node's task by submitit, and decide after a start whether its job goes on.

The batch script decides, after srun. Where it cannot, because it was killed or because the time
limit is near, the first node's task does.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from and_dist.distributed.launch_env import parent_of
from and_dist.distributed.watchdog import TRY_AGAIN
from and_dist.utils.logs import set_up_logging
from launcher.jobs.job_folder import (
    NodeEnd,
    StartOutcome,
    claim_end,
    note_beginning,
    read_end,
    read_node_ends,
    read_request,
    starts_without_progress,
    write_end,
    write_node_end,
)
from launcher.jobs.outcome import decide_outcome
from launcher.logs import failure_priority
from launcher.node.placement import NodePlacement, job_id_of, read_placement
from launcher.node.runner import LOOK_SECONDS, SECONDS_TO_END, Node, listen
from launcher.slurm import client

log = logging.getLogger(__name__)
SPARE_SECONDS = 10.0
"""Seconds before the time limit at which the job is requeued even if ranks have not ended; it then
resumes from the last checkpoint that was saved."""
PATIENCE = 60.0
"""Seconds to wait for a SLURM that does not answer."""


def run_node(folder: str) -> None:
    """Run a node's task; submitit calls this on every node."""
    set_up_logging("and-launch", "warning")
    # These handlers replace submitit's, which would requeue from one task while others still save.
    heard = listen()
    job, is_over, deciding = Path(folder), threading.Event(), list[threading.Thread]()

    def on_asked(name: str) -> None:
        """Decide in a thread whether the job goes on, so that the node's own wait continues."""
        thread = threading.Thread(target=_see_to_it, args=(job, place, name, is_over))
        thread.start()
        deciding.append(thread)

    try:
        place = read_placement()
        if place.node == 0:
            _begin(job, place.start)
        end = Node(job, place, heard, on_asked).run()
    except Exception as error:  # any error has to reach `and-launch logs`
        _note_problem(job, f"{type(error).__name__}: {error}")
        raise
    finally:
        is_over.set()
        for thread in deciding:  # this thread may be the only one that can requeue
            thread.join()
    if end.launcher != 0 and set(end.exit_codes.values()) != {TRY_AGAIN}:
        # srun ends all tasks when one fails; the other nodes first get time to record their ends.
        _wait_for_all(job, place)
        sys.exit(1)


def _begin(job: Path, start: int) -> None:
    """Write down the start; raise RuntimeError if too many starts in a row left no new checkpoint.

    SLURM may requeue a job by itself, without the decision of a batch script.
    """
    note_beginning(job, start)
    idle = starts_without_progress(job, start - 1)
    if idle >= read_request(job).profile.most_ends_without_progress:
        raise RuntimeError(f"it was not started again after {idle} starts without a new checkpoint")


def _wait_for_all(job: Path, place: NodePlacement) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    while len(read_node_ends(job, place.start)) < place.num_nodes and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def _note_problem(job: Path, problem: str) -> None:
    environ = os.environ
    end = NodeEnd(node=environ.get("SLURMD_NODENAME", "?"), problem=problem)
    start = int(environ.get("SLURM_RESTART_COUNT", "0"))
    write_node_end(job, start, int(environ["SLURM_NODEID"]), end)


def _see_to_it(job: Path, place: NodePlacement, name: str, is_over: threading.Event) -> None:
    """Requeue a job that was asked to end, if nobody else can: on the first node only.

    In a container there is no scontrol, and only the batch script can requeue.
    """
    if place.node != 0 or shutil.which("scontrol") is None:
        return
    if name == "SIGTERM":
        settle_what_slurm_ended(job, place.job, place.start)
        return
    profile = read_request(job).profile
    seconds = max(1.0, profile.signal_lead - SPARE_SECONDS)
    if profile.requeues:
        settle_late(job, place.job, place.start, seconds, is_over)


def settle_late(
    job: Path, job_id: str, start: int, seconds: float, is_over: threading.Event
) -> None:
    """Decide how the start ended if the ranks have not ended within `seconds` of SLURM's signal.

    Otherwise the batch script decides.
    """
    if not is_over.wait(seconds) and read_end(job, start) is None:
        settle(job, job_id, start, "it was told to end, and had not in time")


def settle_what_slurm_ended(job: Path, job_id: str, start: int) -> StartOutcome | None:
    """Record and return how a start ended that SLURM ended; None if SLURM did not.

    After a preemption the batch script is alive, and decides.
    """
    try:
        known = client.find_job(job_id, PATIENCE)
    except RuntimeError:  # without SLURM's word the records of the nodes decide
        return None
    if known is None or known.state == "RUNNING":
        return None
    if known.restarts > start:
        return _note_end(
            job, start, "goes on", "SLURM queued it again: a node was lost, or someone asked for it"
        )
    if known.reason == "None":
        return _note_end(job, start, "cancelled", "it was cancelled")
    why = f"SLURM ended it ({known.reason}), and its batch script with it"
    return settle(job, job_id, start, why)


def _note_end(job: Path, start: int, state: str, why: str) -> StartOutcome:
    """Record and return an outcome that SLURM has decided."""
    end = StartOutcome(state=state, why=why, when=time.time())
    if claim_end(job, start):
        write_end(job, start, end)
    return end


def settle(job: Path, job_id: str, start: int, told: str = "") -> StartOutcome:
    """Decide how a start ended, and requeue the job if it goes on; return the outcome."""
    request = read_request(job)
    end = decide_outcome(
        read_node_ends(job, start),
        request.nodes,
        starts_without_progress(job, start),
        request.profile.most_ends_without_progress,
        failure_priority(request.folder),
        told,
    )
    end = end.model_copy(update={"when": time.time()})
    if end.state == "goes on" and not request.profile.requeues:
        end = _stopped(end, "requeues is false in the cluster profile")
    if not claim_end(job, start):
        return read_end(job, start) or end
    write_end(job, start, end)
    log.warning("start %d of job %s: %s, %s", start, job_id, end.state, end.why)
    if end.state == "goes on":
        try:
            client.requeue(job_id, PATIENCE)  # SLURM ends this process with it
        except RuntimeError as error:
            end = _stopped(end, str(error))
            write_end(job, start, end)
    return end


def _stopped(end: StartOutcome, why_not: str) -> StartOutcome:
    why = f"{end.why}; not requeued ({why_not}): submit the same again, and it goes on"
    return end.model_copy(update={"state": "stopped", "why": why})


def _has_lost_slurm() -> bool:
    """Return whether this script's slurmstepd is gone, so that SLURM would not notice its end."""
    pid = parent_of(os.getpid())
    while pid is not None and pid > 1:
        if "slurmstepd" in Path(f"/proc/{pid}/comm").read_text():
            return False
        pid = parent_of(pid)
    return True


def main() -> int:
    """Decide how the start ended, as the last line of the batch script; return its exit code.

    The command is python -m launcher.slurm.task JOB, with one JOB for each member of an array.
    """
    set_up_logging("and-launch", "warning")
    environ = os.environ
    job_id = job_id_of(environ)
    job = Path(sys.argv[1 + int(environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    start = int(environ.get("SLURM_RESTART_COUNT", "0"))
    end = settle_what_slurm_ended(job, job_id, start) or settle(job, job_id, start)
    if end.state != "goes on" and _has_lost_slurm():
        client.cancel(job_id)
    return 0 if end.state == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
