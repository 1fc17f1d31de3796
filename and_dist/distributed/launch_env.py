"""Read which rank of which job this process is, and since when it has been running.

The only module that reads RANK and its kind, and the variables of srun where there is no torchrun.
No torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from and_dist.utils.formatting import safe_lines
from and_dist.utils.owned_files import create_file

LOST_ANOTHER = re.compile(
    r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|NCCL|[Ss]ocket|gloo|Dist\w+Error"
)
"""Words in the error message of a rank that failed because another rank ended first."""
SECONDS_FOR_THE_CAUSE = 3.0
"""The time in which a rank that failed by itself has ended, after others have lost it."""


@dataclass(frozen=True)
class LaunchEnv:
    """Hold a process's place in its world; a process without a launcher is a world of one."""

    is_alone: bool = True
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    """How often this node's torchrun has started its ranks anew after a failure."""
    meeting: str = ""
    """host:port where ranks that srun started meet; torchrun tells its own."""
    cores: int = 0
    """Cores of this rank, where srun was told --cpus-per-task."""

    @property
    def is_of_srun(self) -> bool:
        """Return whether srun, not torchrun, started the ranks."""
        return self.meeting != ""


def read_launch_env(environ: Mapping[str, str] = os.environ) -> LaunchEnv:
    """Return this process's place; raise ValueError for values that contradict each other."""
    if "WORLD_SIZE" not in environ and _is_task_of_srun(environ):
        return _read_srun(environ)
    size = _number(environ, "WORLD_SIZE", 1)
    if size < 1:
        raise ValueError("WORLD_SIZE=0 in the environment: a world needs at least one rank")
    launch_env = LaunchEnv(
        "WORLD_SIZE" not in environ,
        _number(environ, "RANK", 0),
        size,
        _number(environ, "LOCAL_RANK", 0),
        _number(environ, "LOCAL_WORLD_SIZE", 1),
        _number(environ, "TORCHELASTIC_RESTART_COUNT", 0),
    )
    if launch_env.rank >= size:
        raise ValueError(
            f"RANK={launch_env.rank} in the environment is not below WORLD_SIZE={size}"
        )
    return launch_env


def _is_task_of_srun(environ: Mapping[str, str]) -> bool:
    """Return whether srun started this process as one of several tasks.

    A batch script has no SLURM_STEP_NODELIST, and is alone whatever its job's size.
    """
    return "SLURM_STEP_NODELIST" in environ and _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1


def _read_srun(environ: Mapping[str, str]) -> LaunchEnv:
    """Return the place of a task of srun, which is one rank."""
    host = environ.get("MASTER_ADDR") or first_node(environ["SLURM_STEP_NODELIST"])
    port = environ.get("MASTER_PORT") or port_of(
        _number(environ, "SLURM_JOB_ID", 0), _number(environ, "SLURM_STEP_ID", 0)
    )
    tasks_of_nodes = expand_counts(environ["SLURM_STEP_TASKS_PER_NODE"])
    return LaunchEnv(
        False,
        _number(environ, "SLURM_PROCID", 0),
        _number(environ, "SLURM_STEP_NUM_TASKS", 1),
        _number(environ, "SLURM_LOCALID", 0),
        tasks_of_nodes[_number(environ, "SLURM_NODEID", 0)],
        meeting=f"{host}:{port}",
        cores=_number(environ, "SLURM_CPUS_PER_TASK", 0),
    )


def first_node(nodes: str) -> str:
    """Return the first node of a SLURM node list: n01 of n[01-04,7],m."""
    outside_brackets = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert outside_brackets
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", outside_brackets.group())


def expand_counts(counts: str) -> list[int]:
    """Expand SLURM's counts: 2(x3),1 is 2, 2, 2, 1."""
    numbers = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in numbers for _ in range(int(times or 1))]


def port_of(job: int, step: int = 0) -> int:
    """Return a port for a job's ranks to meet at.

    Jobs that may share a node get different ones, below those the kernel hands out.
    """
    return 10_000 + (job * 10 + step) % 20_000


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a variable as a whole number; raise ValueError if it is none."""
    text = environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r} in the environment is not a whole number")
    return int(text)


def named_rank(environ: Mapping[str, str] = os.environ) -> str:
    """Return this process's rank as it is written, however broken the rest may be."""
    return _named(environ, "RANK", "SLURM_PROCID")


def is_rank_zero(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process speaks for all ranks."""
    return named_rank(environ) == "0"


def is_first_of_node(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the first rank of its node."""
    return _named(environ, "LOCAL_RANK", "SLURM_LOCALID") == "0"


def _named(environ: Mapping[str, str], ours: str, of_srun: str) -> str:
    """Return torchrun's variable, or srun's where srun started the ranks, or 0."""
    return environ.get(ours, environ.get(of_srun, "0") if _is_task_of_srun(environ) else "0")


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return a name for this job, the same for every start of it.

    SLURM's job and step, torchrun's --rdzv-id, or None for a process that neither started.
    """
    if "SLURM_JOB_ID" in environ:
        return f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', 'batch')}"
    name = environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if name == "none" else f"torchrun {name}"


NAME_OF_A_GPU = re.compile(r"\d+|(GPU|MIG)-.+")
"""What CUDA takes for a GPU. It sees none of those that stand after another word, such as -1."""


def count_gpus(environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """Return how many GPUs of this machine a process with these variables may use."""
    present = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in devices.iterdir())
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return present
    names = environ["CUDA_VISIBLE_DEVICES"].split(",")
    return min(present, sum(1 for _ in takewhile(NAME_OF_A_GPU.fullmatch, names)))


def end_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """Ask torchrun to end, if it is the launcher and would restart its ranks.

    It starts them anew after every exit status but 0.
    """
    starts_anew = _number(environ, "TORCHELASTIC_MAX_RESTARTS", 0) > 0
    if (
        "TORCHELASTIC_RUN_ID" in environ
        and starts_anew
        and read_launch_env(environ).local_rank == 0
    ):
        os.kill(os.getppid(), signal.SIGTERM)


def tell_launcher(message: str, environ: Mapping[str, str] = os.environ) -> None:
    """Leave torchrun the message with which this rank fails, so that torchrun prints it last.

    torchrun prints a traceback of its own after the output of the ranks, and then a table that ends
    with the error file of the rank that failed first. `torch.distributed.elastic` defines the
    file. `py_callstack` is what the table shows. The message begins a line of its own there.
    """
    if "TORCHELASTIC_ERROR_FILE" not in environ:
        return
    said = safe_lines(message)
    more = {"py_callstack": f"\n{said}", "timestamp": str(int(time.time()))}
    content = json.dumps({"message": {"message": said, "extraInfo": more}})
    with suppress(OSError):  # the message has been printed, and nothing else depends on the file
        create_file(Path(environ["TORCHELASTIC_ERROR_FILE"]), content)


def let_the_cause_end_first(message: str, environ: Mapping[str, str] = os.environ) -> None:
    """Wait a moment if this rank fails because it lost another rank.

    torchrun takes the rank that ends first for the cause. Where the other rank is a neighbour on
    this machine, torchrun sees its end meanwhile, and ends this process.
    """
    has_neighbours = read_launch_env(environ).local_size > 1
    if "TORCHELASTIC_RUN_ID" in environ and has_neighbours and LOST_ANOTHER.search(message):
        time.sleep(SECONDS_FOR_THE_CAUSE)


def process_start(pid: int) -> float | None:
    """Return the seconds from the machine's start to the process's; None if it is gone."""
    status = _read_status(pid)
    if status is None or status[0] == "Z":
        return None
    return int(status[19]) / os.sysconf("SC_CLK_TCK")


def boot_id() -> str | None:
    """Return the name of this start of the kernel, which all its containers have in common."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def pid_namespace() -> int | None:
    """Return the number of the namespace in which this process has its number."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def parent_of(pid: int) -> int | None:
    """Return the parent of a process; None if it is gone."""
    status = _read_status(pid)
    return None if status is None else int(status[1])


def _read_status(pid: int) -> list[str] | None:
    """Return /proc/PID/stat from the state on; the name before it may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def seconds_since_start(pid: int) -> float:
    """Return how long a process has been running; 0 if it is gone."""
    started = process_start(pid)
    return 0.0 if started is None else time.clock_gettime(time.CLOCK_BOOTTIME) - started


def process_began() -> float:
    """Return when this process began, in seconds since 1970."""
    return time.time() - seconds_since_start(os.getpid())


JOB_BEGAN = "AND_DIST_JOB_BEGAN"
"""The variable in which and-launch tells the ranks when their job began on their node."""


def job_began(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when the job began on this node, in seconds since 1970; None where nobody says so."""
    try:
        return float(environ[JOB_BEGAN])
    except (KeyError, ValueError):
        return None


class AllRanksError(RuntimeError):
    """Says what all ranks raise together, so that the first can speak for all."""


class AllRanksDiskError(AllRanksError):
    """Says that a rank's disk is full, over its quota, read-only or broken."""
