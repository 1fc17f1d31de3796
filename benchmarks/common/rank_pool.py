"""Keep four gloo processes alive for a whole test session; a world of W is the first W of them.

A test passes a function of (world, *arguments), found by its module and name. Every rank runs it,
and the test gets the results of all ranks. An exception of a rank is raised in the test.
"""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from and_dist.distributed.world import World

SIZES = (1, 2, 3, 4)
SECONDS_TO_ANSWER = 300
SECONDS_TO_END = 5
PRELOAD = [
    "and_dist.commands.train",
    "and_dist.data.pipeline",
    "and_dist.objectives.anchor_neighbourhoods",
    "torch._dynamo",
    "tensorboard.summary.writer.record_writer",
    "tensorboard.plugins.custom_scalar.metadata",
    "tensorboard.plugins.custom_scalar.layout_pb2",
    "tensorboard.plugins.hparams.metadata",
    "tensorboard.plugins.text.metadata",
    "faiss.contrib.torch_utils",
]
"""Modules that the fork server loads once, so that no rank has to.

A rank that begins from nothing loads most of them when they are first needed.
"""


class RankError(AssertionError):
    """Report the exceptions of one call, by rank."""

    def __init__(self, errors: dict[int, BaseException], text: str) -> None:
        """Keep the exceptions beside the message."""
        super().__init__(text)
        self.errors = errors


class RankPool:
    """Run functions on the ranks of a world."""

    def __init__(self) -> None:
        """Start the processes."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        port = free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(max(SIZES)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run function(world, *arguments) on ranks 0..size-1 and return their results in a list.

        Raise RankError if a rank raises, and TimeoutError if one does not answer.
        """
        for pipe in self._pipes[:size]:
            pipe.send((size, pickle.dumps((function, arguments))))
        answers = []
        for rank, pipe in enumerate(self._pipes[:size]):
            if not pipe.poll(SECONDS_TO_ANSWER):
                self.close()
                raise TimeoutError(f"rank {rank} of {size} did not answer in {function.__name__}")
            answers.append(pipe.recv())
        errors = {rank: answer[1] for rank, answer in enumerate(answers) if not answer[0]}
        if errors:
            text = "\n".join(f"rank {rank}: {error}{log}" for rank, (error, log) in errors.items())
            raise RankError({rank: error for rank, (error, _) in errors.items()}, text)
        return [pickle.loads(answer[1]) for answer in answers]

    def close(self) -> None:
        """Let the processes end, and kill those that do not."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(SECONDS_TO_END)
            process.kill()


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=max(SIZES),
        timeout=timedelta(seconds=SECONDS_TO_ANSWER),
    )
    groups = {size: dist.new_group(list(range(size))) for size in SIZES}
    side_groups = {size: dist.new_group(list(range(size))) for size in SIZES}
    while True:
        try:
            size, call = pipe.recv()
        except EOFError:
            return
        cpu = torch.device("cpu")
        world = World(rank, size, rank, size, cpu, groups[size], side_groups[size])
        try:
            function, arguments = pickle.loads(call)
            pipe.send((True, pickle.dumps(function(world, *arguments))))
        except BaseException as error:  # whatever a rank raises, its test has to see it
            pipe.send((False, (error, "\n" + traceback.format_exc())))


def free_port() -> int:
    """Return a TCP port that is free on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
