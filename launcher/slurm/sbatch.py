"""Write and submit the sbatch script of a job by submitit.

The script runs one task on each node (task.run_node), then a last line that decides whether the job
goes on (task.main).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from and_dist.utils.owned_folders import scratch_folder
from launcher.jobs.job_folder import write_id
from launcher.jobs.request import Request
from launcher.node.runner import environment_of
from launcher.slurm import client
from launcher.slurm.task import run_node

JOB_IDS = re.compile(r"\d+(_\d+)?(:\d+(_\d+)?)*")


class _Executor(SlurmExecutor):
    """Write a script also where SLURM is not installed."""

    @classmethod
    def affinity(cls) -> int:
        """Return a score above 0, without which submitit takes SLURM to be missing."""
        return 2


def script_of(
    folder: Path,
    jobs: Sequence[Path],
    request: Request,
    name: str,
    after: str | None = None,
    parallel: int = 1,
) -> str:
    """Return the script that `submit` or `submit_array` passes to sbatch; nothing is written."""
    with scratch_folder() as scratch:  # submitit creates its folder in the constructor
        executor = _make_executor(scratch, jobs, request, name, after, parallel)
    executor.folder = folder.absolute()
    if len(jobs) > 1:
        executor.parameters["map_count"] = len(jobs)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(
    job: Path,
    request: Request,
    name: str,
    after: str | None = None,
    task: Callable[[str], None] = run_node,
) -> str:
    """Submit a job and return its id; raise ValueError with SLURM's error message if it refuses."""
    (job_id,) = _submit([job], _make_executor(job, [job], request, name, after), task)
    return job_id


def submit_array(
    folder: Path, jobs: Sequence[Path], request: Request, name: str, parallel: int
) -> list[str]:
    """Submit a job array, of which at most `parallel` members run at once; return the members'
    ids."""
    return _submit(jobs, _make_executor(folder, jobs, request, name, None, parallel), run_node)


def _submit(
    jobs: Sequence[Path], executor: SlurmExecutor, task: Callable[[str], None]
) -> list[str]:
    parameters = executor.parameters
    try:
        submitted = executor.map_array(task, [str(job) for job in jobs])
    except (FailedSubmissionError, FailedJobError) as error:
        said = client.in_few_words(str(error))
        raise ValueError(f"sbatch refused the job: {said}{_hint(said, parameters)}") from None
    ids = [member.job_id for member in submitted]
    for job, job_id in zip(jobs, ids, strict=True):
        write_id(job, job_id)
    return ids


def _hint(said: str, parameters: dict[str, Any]) -> str:
    if "invalid partition" in said.lower():
        there = ", ".join(client.partitions())
        return f" (partition={parameters.get('partition')}; there are {there})"
    names = ("partition", "account", "qos", "constraint", "nodes", "gpus_per_node", "mem", "time")
    wanted = [f"{name}={parameters[name]}" for name in names if name in parameters]
    more = parameters["additional_parameters"]
    wanted += [f"--after {more['dependency']}"] if "dependency" in more else []
    return f" (asked for: {', '.join(wanted)})"


def _make_executor(
    folder: Path,
    jobs: Sequence[Path],
    request: Request,
    name: str,
    after: str | None,
    parallel: int = 1,
) -> SlurmExecutor:
    executor = _Executor(folder, python=request.python)
    executor.update_parameters(
        array_parallelism=parallel, **_parameters(jobs, request, name, after)
    )
    return executor


def _parameters(
    jobs: Sequence[Path], request: Request, name: str, after: str | None
) -> dict[str, Any]:
    profile = request.profile
    cpus = profile.cpus_per_node or (profile.cpus_per_gpu or 0) * request.gpus or None
    more: dict[str, Any] = {"requeue" if profile.requeues else "no-requeue": True}
    more |= {option: value for option, value in profile.sbatch.items() if value is not False}
    if after is not None:
        if not JOB_IDS.fullmatch(after):
            raise ValueError(f"--after {after!r} is no id of a job, such as 4711 or 4711_3")
        more["dependency"] = f"afterany:{after}"
    wanted = {
        "job_name": name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclusive": profile.exclusive or None,
        "mem": f"{profile.memory_gb}GB" if profile.memory_gb else None,
        "nodes": request.nodes,
        "ntasks_per_node": 1,
        "gpus_per_node": request.gpus or None,
        "cpus_per_task": cpus,
        "time": request.minutes,
        "signal_delay_s": profile.signal_lead,
        "stderr_to_stdout": True,
        "setup": [*profile.setup, *_exports(request)],
        # From SLURM 22.05 on srun does not inherit --cpus-per-task from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", *_cpus_of_srun(cpus), *profile.srun],
        "teardown": [f"{request.host_python} -m launcher.slurm.task {shlex.join(map(str, jobs))}"],
        "additional_parameters": more,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _exports(request: Request) -> list[str]:
    lines = [f"export {k}={shlex.quote(v)}" for k, v in environment_of(request).items()]
    if request.has_secrets:
        lines.append(f". {shlex.quote(str(request.secrets_file))}")
    code = shlex.quote(request.code)
    return [*lines, f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _cpus_of_srun(cpus: int | None) -> list[str]:
    return [] if cpus is None else [f"--cpus-per-task={cpus}"]
