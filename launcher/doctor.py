"""Test a cluster profile with a short job and report its faults: `and-launch doctor`.

The job takes the way of every other job, through sbatch, submitit, torchrun and the rendezvous of
all ranks. It differs in two things: the ranks run launcher.node.allreduce_check, and each node
first writes down its Python, packages, network interfaces and GPUs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from and_dist.runs.folder import package_versions
from and_dist.utils.folder_names import Named
from and_dist.utils.owned_files import is_json_with, read_json, write_file
from and_dist.utils.owned_folders import remove_tree
from launcher.jobs.cluster_profile import Profile
from launcher.jobs.job_folder import (
    new_job_folder,
    read_end,
    read_node_ends,
    read_request,
    take_snapshot,
    write_request,
)
from launcher.jobs.request import Request, Size, check_writable
from launcher.logs import list_ranks, read_failure, read_tail
from launcher.node.cuda_pairs import describe_mismatch, find_builds
from launcher.node.rank import log_of
from launcher.node.runner import LOOK_SECONDS
from launcher.slurm import client, sbatch
from launcher.slurm.task import run_node
from launcher.submit import all_or_nothing, pythons_of, refuse_what_never_starts

SECONDS = 120.0
"""The time limit of the job."""
SIGNAL_LEAD = 20
"""The signal lead of the job: the least that a profile may set."""
POLL_SECONDS = 1.0
SECONDS_TO_SEE = 20.0
"""The longest time in which a file of another node shows up on a shared file system."""
WRITTEN = Named(r"node-\d+\.json|sum-\d+|seen-by-batch-script|logs/.*|jobs/.*")
"""The files that a doctor's job leaves in its run folder."""
is_findings = is_json_with("name", "packages")
MODULES = ("torch", "nvidia.dali", "faiss", "pydantic", "submitit")
"""The modules that a node has to be able to import."""


class Report:
    """Print findings as they come, and remember whether one was a fault."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start without a fault."""
        self._say = say
        self.is_healthy = True

    def well(self, what: str) -> None:
        """Print a finding that is as it should be."""
        self._say(f"  ok     {what}")

    def ill(self, what: str) -> None:
        """Print a fault."""
        self.is_healthy = False
        self._say(f"  WRONG  {what}")


def examine(
    profile: Profile, size: Size, folder: Path, patience: float, say: Callable[[str], None]
) -> int:
    """Test a profile with a job; return exit code 0 if it works, else 1."""
    client.check_slurm()
    check_writable(folder)
    report = Report(say)
    partition = profile.partition or "(default)"
    say(f"partition {partition}, {size.nodes} node(s) of {size.gpus} GPU(s)")
    run = folder.absolute() / f"doctor-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        with all_or_nothing(run) as made:
            job_id = _submit(run, profile, size, made)
    except ValueError as error:
        report.ill(str(error))
        return 1
    report.well(f"SLURM took the job: {job_id}")
    try:
        if _wait(job_id, patience, report):
            _look_at_nodes(run, size, profile, report)
    finally:
        client.cancel_quietly(job_id)
    say("this profile works" if report.is_healthy else f"this profile does not work; see {run}")
    if report.is_healthy:
        remove_tree(run, WRITTEN)
    return 0 if report.is_healthy else 1


def _submit(run: Path, profile: Profile, size: Size, made: list[Path]) -> str:
    job = new_job_folder(run, made)
    take_snapshot(job / "code", profile.secrets)
    seen = f"touch {shlex.quote(str(run / 'seen-by-batch-script'))}"
    tried = profile.model_copy(
        update={"signal_lead": SIGNAL_LEAD, "requeues": False, "setup": (seen, *profile.setup)}
    )
    request = Request(
        run=str(run),
        command=("launcher.node.allreduce_check", str(run)),
        nodes=size.nodes,
        workers=size.ranks_of_a_node,
        gpus=size.gpus,
        seconds=SECONDS,
        **pythons_of(profile),
        code=str(job / "code"),
        profile=tried.without_secrets(),
        has_secrets=bool(profile.secrets),
    )
    write_request(job, request)
    job_id = sbatch.submit(job, request, "and-launch-doctor", None, run_probe)
    refuse_what_never_starts(job_id, request)
    return job_id


def run_probe(folder: str) -> None:
    """Examine the node, then run its share of the job unless it has a fault; submitit calls this on
    every node."""
    job = Path(folder)
    run, node = job.parents[1], int(os.environ["SLURM_NODEID"])
    names = [run / f"node-{n}.json" for n in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
    found = _look_around()
    write_file(names[node], json.dumps(found), is_findings)
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not all(path.exists() for path in names) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    found["sees"] = sum(path.exists() for path in names)
    write_file(names[node], json.dumps(found), is_findings)
    wanted = read_request(job)
    if not _problems(found, found, wanted.nodes, wanted.gpus, wanted.profile):
        run_node(folder)


def _look_around() -> dict[str, Any]:
    return {
        "name": os.environ.get("SLURMD_NODENAME", platform.node()),
        "python": platform.python_version(),
        "packages": package_versions(),
        "missing": [name for name in MODULES if not _can_be_found(name)],
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "gpus": _count_gpus(),
        "cuda": describe_mismatch(find_builds()),
    }


def _can_be_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _count_gpus() -> int:
    """Return how many GPUs torch finds; 0 without torch."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def _wait(job_id: str, patience: float, report: Report) -> bool:
    """Wait until the job has ended; return False if it has not started within `patience`
    seconds."""
    deadline = time.monotonic() + patience
    while True:
        known = client.find_job(job_id)
        if known is None or known.is_over:
            return True
        if known.state == "PENDING" and time.monotonic() > deadline:
            report.ill(
                f"the job did not start in {patience:.0f} s, it waits for {known.reason}; ask for "
                "less, or be more patient with --patience"
            )
            return False
        time.sleep(POLL_SECONDS)


def _look_at_nodes(run: Path, size: Size, profile: Profile, report: Report) -> None:
    job = run / "jobs" / "001"
    said = [line for file in sorted(job.glob("*_log.out")) for line in read_tail(file, 6)]
    if not (run / "seen-by-batch-script").exists():
        report.ill(f"the nodes do not see {run.parent}: choose a --folder that is shared with them")
        return
    report.well(f"the nodes write to {run.parent}")
    nodes = [read_json(path) for path in sorted(run.glob("node-*.json"))]
    if not nodes:
        report.ill("Python did not start on the nodes: " + " | ".join(said))
        return
    for node in nodes:
        for problem in _problems(node, nodes[0], size.nodes, size.gpus, profile):
            report.ill(f"{node['name']} {problem}")
    if report.is_healthy:
        names = ", ".join(node["name"] for node in nodes)
        report.well(f"Python {nodes[0]['python']} and what it needs are on {names}")
        _look_at_sums(run, job, size, report)


def _problems(
    node: dict[str, Any], first: dict[str, Any], num_nodes: int, num_gpus: int, profile: Profile
) -> list[str]:
    found = []
    if node.get("sees", num_nodes) < num_nodes:
        found.append(f"sees files of {node['sees']} of {num_nodes} nodes: the folder is not shared")
    if node["missing"]:
        found.append(f"lacks Python packages: {', '.join(node['missing'])}")
    if node["packages"] != first["packages"] or node["python"] != first["python"]:
        found.append(f"has another Python environment than {first['name']}")
    if profile.interface and profile.interface not in node["interfaces"]:
        has = ", ".join(node["interfaces"])
        found.append(f"has no network interface {profile.interface}; it has {has}")
    if num_gpus and node.get("cuda"):
        found.append(node["cuda"])
    elif node["gpus"] < num_gpus:
        found.append(f"shows torch {node['gpus']} GPU(s), {num_gpus} were asked for")
    return found


def _look_at_sums(run: Path, job: Path, size: Size, report: Report) -> None:
    """Report whether the ranks of all nodes met and have the right sum."""
    wanted = size.nodes * size.ranks_of_a_node
    sums = [path.read_text() for path in run.glob("sum-*")]
    if len(sums) == wanted and set(sums) == {str(wanted)}:
        report.well(f"{wanted} ranks on {size.nodes} node(s) met and summed")
        _look_at_end(job, report)
        return
    problems = [end.problem for end in read_node_ends(job, 0).values() if end.problem]
    ranks = [rank for rank in list_ranks(run) if not (run / f"sum-{rank}").exists()]
    words = problems or [read_failure(log_of(run, rank))[-1] for rank in ranks[:1]]
    words = words or read_tail(run / "logs" / "node-0.log", 1) or ["they did not start"]
    report.ill(f"the ranks did not connect: {words[0]}")


def _look_at_end(job: Path, report: Report) -> None:
    """Report whether the batch script decided how the start ended; without that no job is
    requeued."""
    end = read_end(job, 0)
    if end is not None and end.state == "finished":
        report.well("the batch script decided what comes next")
        return
    said = [line for file in sorted(job.glob("*_0_log.out")) for line in read_tail(file, 1)]
    why = end.why if end is not None else " | ".join(said)
    report.ill(
        f"the batch script could not decide what comes next: {why}; set "
        "host_python to a Python with pydantic and submitit that runs on the nodes outside any "
        "container"
    )
