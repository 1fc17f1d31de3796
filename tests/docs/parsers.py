"""Parse commands of the docs by the option parsers of the programs that they start."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import typer
from typer.core import TyperGroup

from and_dist.cli import app as and_dist
from launcher.cli import app as and_launch

PROGRAMS: dict[str, typer.Typer] = {"and-dist": and_dist, "and-launch": and_launch}
SHELL = frozenset(
    (
        "apptainer",
        "apt-get",
        "cat",
        "cd",
        "chmod",
        "conda",
        "cp",
        "df",
        "docker",
        "dpkg-deb",
        "echo",
        "export",
        "git",
        "jupyter",
        "ln",
        "ls",
        "mkdir",
        "module",
        "mv",
        "nvidia-smi",
        "pip",
        "pre-commit",
        "rm",
        "rsync",
        "sacctmgr",
        "sbatch",
        "scancel",
        "scontrol",
        "scp",
        "sinfo",
        "source",
        "squeue",
        "srun",
        "ssh",
        "sudo",
        "tail",
        "tar",
        "tensorboard",
        "ulimit",
        "wandb",
    )
)
"""Programs of others, whose options are not ours to check."""


def check_command(command: str) -> None:
    """Raise an error if a program would refuse the options of a command."""
    words = shlex.split(command)
    while words and re.match(r"^[A-Z][A-Z0-9_]*=", words[0]):
        words = words[1:]
    words = [word for word in words if word not in ("&",)]
    program = Path(words[0]).name
    if program in PROGRAMS:
        parse(PROGRAMS[program], words[1:])
    elif (program in ("torchrun", "srun") and "-m" in words) or (
        program.startswith("python") and "-m" in words
    ):
        module, *rest = words[words.index("-m") + 1 :]
        check_module(module, rest)
    elif program == "make":
        check_targets(words[1:])
    else:
        is_known = program in SHELL or program.startswith(("python", "torchrun"))
        assert is_known, f"{program} is no program that docs may name"


def check_module(module: str, rest: Sequence[str]) -> None:
    """Raise an error if there is no such module, or and_dist would refuse the options."""
    if module == "and_dist":
        parse(and_dist, rest)
    elif module == "launcher":
        parse(and_launch, rest)
    else:
        assert importlib.util.find_spec(module), f"there is no module {module}"


def check_targets(words: Sequence[str]) -> None:
    """Raise an error if the Makefile lacks a target."""
    targets = re.findall(r"^([a-z][a-z-]*):", Path("Makefile").read_text(), flags=re.MULTILINE)
    for word in words:
        assert "=" in word or word in targets, f"make has no target {word}"


def parse(program: typer.Typer, words: Sequence[str]) -> None:
    """Parse the words of a command with its own parser, and call nothing."""
    group = typer.main.get_command(program)
    assert isinstance(group, TyperGroup)
    context = group.make_context("docs", list(words) or ["--help"], resilient_parsing=True)
    rest = [*context._protected_args, *context.args]
    if not rest:
        return
    command = group.get_command(context, rest[0])
    assert command is not None, f"there is no command {rest[0]}"
    command.make_context(rest[0], list(rest[1:]), parent=context)
