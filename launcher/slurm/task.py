"""What submitit runs, one task a node, and what the batch script runs when all have ended.

Who decides how a start ended and whether the job goes on: the batch script, after srun. Where
it cannot, because it was killed or because the time is nearly over, the first node's task does.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

from and_dist.distributed.launch_env import parent_of
from and_dist.distributed.watchdog import TRY_AGAIN
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

SPARE_SECONDS = 10.0
"""Before the time limit: what is not saved by then goes on from the checkpoint before."""
PATIENCE = 60.0
"""Seconds with a SLURM that does not answer."""


def run_node(folder: str) -> None:
    """Called by submitit on every node."""
    heard = listen()  # instead of submitit, whose handler would requeue from here
    job, is_over, deciding = Path(folder), threading.Event(), list[threading.Thread]()

    def on_asked(name: str) -> None:
        thread = threading.Thread(target=_see_to_it, args=(job, place, name, is_over))
        thread.start()
        deciding.append(thread)

    try:
        place = read_placement()
        if place.node == 0:
            _begin(job, place.start)
        end = Node(job, place, heard, on_asked).run()
    except Exception as error:  # whatever it is, who asks for the logs has to see it
        _note_problem(job, f"{type(error).__name__}: {error}")
        raise
    finally:
        is_over.set()
        for thread in deciding:  # it may be the only one that can requeue
            thread.join()
    if end.launcher != 0 and set(end.exit_codes.values()) != {TRY_AGAIN}:
        # srun ends all tasks when one fails; the others are given time to see for themselves.
        _wait_for_all(job, place)
        sys.exit(1)


def _begin(job: Path, start: int) -> None:
    """RuntimeError if it were in vain once more: SLURM itself requeues without asking anyone."""
    note_beginning(job, start)
    idle = starts_without_progress(job, start - 1)
    if idle >= read_request(job).profile.most_ends_without_progress:
        raise RuntimeError(f"it was not tried again after {idle} starts that left none")


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
    """On the first node: what was asked to end goes on, if nobody else can see to that. In a
    container there is no scontrol, and only the batch script can."""
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
    """SLURM said the time is nearly over. Once the node's ranks have ended, the batch script
    decides."""
    if not is_over.wait(seconds) and read_end(job, start) is None:
        settle(job, job_id, start, "it was told to end, and had not in time")


def settle_what_slurm_ended(job: Path, job_id: str, start: int) -> StartOutcome | None:
    """None where SLURM has ended nothing: in preemption the batch script lives, and decides."""
    try:
        known = client.find_job(job_id, PATIENCE)
    except RuntimeError:  # then what the nodes say has to do
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
    """What SLURM has decided."""
    end = StartOutcome(state=state, why=why, when=time.time())
    if claim_end(job, start):
        write_end(job, start, end)
    return end


def settle(job: Path, job_id: str, start: int, told: str = "") -> StartOutcome:
    """Decide how a start ended; requeue the job if it goes on."""
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
    print(f"and-launch: start {start} of job {job_id}: {end.state}, {end.why}", flush=True)
    if end.state == "goes on":
        try:
            client.requeue(job_id, PATIENCE)  # which ends this process
        except RuntimeError as error:
            end = _stopped(end, str(error))
            write_end(job, start, end)
    return end


def _stopped(end: StartOutcome, why_not: str) -> StartOutcome:
    why = f"{end.why}; not requeued ({why_not}): submit the same again, and it goes on"
    return end.model_copy(update={"state": "stopped", "why": why})


def _has_lost_slurm() -> bool:
    """Whether the step daemon over this batch script is gone, so that SLURM hears of no end."""
    pid = parent_of(os.getpid())
    while pid is not None and pid > 1:
        if "slurmstepd" in Path(f"/proc/{pid}/comm").read_text():
            return False
        pid = parent_of(pid)
    return True


def main() -> int:
    """The last line of the batch script: python -m launcher.slurm.task JOB, or one JOB for each
    member of an array."""
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
