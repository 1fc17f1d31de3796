"""List the steps of the battery: what each runs, for how long at most, and what it proves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MOST_SECONDS_OF_A_PART = 480
PYTHON: Final = (sys.executable,)
TORCHRUN = (*PYTHON, "-m", "torch.distributed.run", "--standalone")
TRAIN = ("train", "--config", "configs/debug.yaml", "run.root={out}/runs")
ONE_RANK, TWO_RANKS = ((*TORCHRUN, f"--nproc-per-node={count}") for count in (1, 2))
ON_DEVICE = ("run.device={device}",)
PROFILED = ("run.profile=true", "curriculum.epochs=12")
BY = ("-m", "benchmarks.device.two_ranks")
BOTH_RUNS = ("{out}/runs/two-gloo", "{out}/runs/two-cpu")
SHARES_A_GPU = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "LD_PRELOAD": "{site}/nccl/libnccl.so.2"}
"""Variables with which NCCL lets ranks share a GPU, which it does from 2.30 on."""


@dataclass(frozen=True)
class Step:
    """Describe one step; {out}, {site} and {device} in its words are filled in."""

    name: str
    limit_s: int
    """Seconds after which the step is ended."""
    command: tuple[str, ...]
    proves: str
    beside: str = ""
    """Steps of the same part with the same word here run side by side."""
    runs_on_cpu: bool = False
    """True if the step can be tried without a GPU."""
    has_figures: bool = False
    """True if the command takes --json and writes results there."""
    lines: int = 14
    """The last lines of the log that are shown."""
    environment: Mapping[str, str] = field(default_factory=dict)


def _of(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command of a module."""
    return (*PYTHON, "-m", module, *arguments)


def _tests(*arguments: str) -> tuple[str, ...]:
    """Return the command of some of the tests that need a GPU."""
    return _of("pytest", "tests/gpu", *arguments)


PARTS: dict[int, tuple[Step, ...]] = {
    1: (
        Step(
            "partition_right",
            60,
            _of("benchmarks.device.partition_accuracy"),
            "log_partition is right in four types, for 64 to 512 features",
            lines=40,
        ),
        Step(
            "partition_times",
            150,
            _of("benchmarks.device.partition_times"),
            "how fast each form is, over ImageNet's rows and over 100 million",
            has_figures=True,
            lines=40,
        ),
        Step(
            "partition_tiles",
            100,
            _of("benchmarks.device.partition_kernel", "time"),
            "which tiles of the Triton kernel are the fastest",
            lines=60,
        ),
        Step(
            "scan_tiles",
            60,
            _of("benchmarks.device.scan_kernel", "time"),
            "how fast a scan of all pairs is that keeps no tile in memory",
        ),
    ),
    2: (
        Step(
            "tests_methods",
            200,
            _tests("-n", "3", "-k", "every_method"),
            "whole runs of every method lose what they lose on a CPU",
            beside="tests",
        ),
        Step(
            "tests_others",
            150,
            _tests("-k", "not every_method and not memory", "--durations=4"),
            "the other tests of tests/gpu",
            beside="tests",
        ),
        Step(
            "world_of_one",
            150,
            _of("benchmarks.device.world_of_one", "{device}"),
            "all collectives, and DDP with its hooks, work by NCCL",
            beside="tests",
            runs_on_cpu=True,
        ),
        Step(
            "tests_memory",
            90,
            _tests("-k", "memory"),
            "plans are as large as what is taken; nothing may run beside this",
        ),
        Step(
            "torchrun",
            60,
            (*ONE_RANK, "-m", "and_dist", *TRAIN, "name=torchrun", *ON_DEVICE, *PROFILED),
            "a profiled run by torchrun",
            runs_on_cpu=True,
            environment={"OMP_NUM_THREADS": "4"},
        ),
    ),
    3: (
        Step(
            "gpu",
            150,
            _of("benchmarks.device.gpu"),
            "how fast steps of AlexNet, ResNet18 and a small network are",
            has_figures=True,
            lines=60,
        ),
        Step(
            "step_kernels",
            50,
            _of("benchmarks.device.step_kernels"),
            "a step never waits for the GPU; where its time goes",
            lines=45,
        ),
        Step(
            "loader",
            100,
            _of("benchmarks.device.loader_times", "--device", "{device}"),
            "how many images a second one rank loads, from JPEGs and from pixels",
            has_figures=True,
            runs_on_cpu=True,
        ),
        Step(
            "discovery",
            110,
            _of("benchmarks.discovery", "--device", "{device}"),
            "how long a discovery over ImageNet's rows takes",
            has_figures=True,
            lines=24,
        ),
    ),
    4: (
        Step(
            "two_ranks_gloo",
            60,
            (*TWO_RANKS, *BY, "gloo", *TRAIN, "name=two-gloo", *ON_DEVICE),
            "two ranks share the GPU",
            runs_on_cpu=True,
        ),
        Step(
            "two_ranks_cpu",
            60,
            (*TWO_RANKS, "-m", "and_dist", *TRAIN, "name=two-cpu", "run.device=cpu"),
            "the same on two CPUs",
            runs_on_cpu=True,
        ),
        Step(
            "compare",
            20,
            # The first round, by the bound of tests/gpu: 5 steps an epoch, 3 epochs.
            _of("benchmarks.device.compare_losses", *BOTH_RUNS, "--steps", "15", "--most", "0.05"),
            "both lose the same within rounding",
            runs_on_cpu=True,
        ),
        Step(
            "two_ranks_nccl",
            60,
            (*TWO_RANKS, *BY, "nccl", *TRAIN, "name=two-nccl", *ON_DEVICE),
            "two ranks share the GPU by NCCL, an experiment",
            environment=SHARES_A_GPU,
        ),
        Step(
            "failing_rank",
            60,
            (*TWO_RANKS, "-m", "benchmarks.device.failing_rank", "nccl"),
            "a rank that fails while another's collective waits is gone at once",
            environment=SHARES_A_GPU,
        ),
        Step(
            "hardware",
            120,
            _of("benchmarks.hardware", "--device", "{device}"),
            "the rates that plans take",
            has_figures=True,
            lines=30,
        ),
        Step(
            "partition",
            90,
            _of("benchmarks.partition", "--device", "{device}", "--repeats", "3"),
            "loss and gradient beside other forms of them",
            has_figures=True,
            lines=30,
        ),
    ),
}
"""Parts by number, each a visit of minutes to a machine with one GPU, the most wanted first."""


def rows_of(part: int) -> list[tuple[Step, ...]]:
    """Return the steps of a part in their order, those that run side by side as one row."""
    rows: list[tuple[Step, ...]] = []
    for step in PARTS[part]:
        if step.beside and rows and rows[-1][-1].beside == step.beside:
            rows[-1] = (*rows[-1], step)
        else:
            rows.append((step,))
    return rows


def limit_of(part: int) -> int:
    """Return the seconds that a part takes at most."""
    return sum(max(step.limit_s for step in row) for row in rows_of(part))
