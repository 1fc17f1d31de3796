"""Batch scripts: what a user or a colleague's profile says is data, and a shell never runs it.

Each script is run by a shell, as sbatch would run what --dry-run shows; `srun` and Python are stubs
that do nothing.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.jobs.cluster_profile import Profile
from launcher.jobs.request import Request, check_in_script
from launcher.slurm.sbatch import script_of

MARK = "executed"
HOSTILE = (
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"; touch {MARK};",
    f"& touch {MARK} &",
    f"| touch {MARK}",
    f"|| touch {MARK}",
    f"'; touch {MARK}; '",
    f'"; touch {MARK}; "',
    f'"$(touch {MARK})"',
    f"'\"'\"'$(touch {MARK})",
    f"\ntouch {MARK}\n",
    f"\rtouch {MARK}\r",
    f"x\n#SBATCH --wrap='touch {MARK}'",
    f"x\x0btouch {MARK}",
    f"x\x00touch {MARK}",
    f"$'\\ntouch {MARK}\\n'",
    f"\\\ntouch {MARK}",
    f"${{IFS}}touch${{IFS}}{MARK}",
    f"> {MARK}",
    f"2>{MARK}",
    f"<(touch {MARK})",
    f"\u2028touch {MARK}\u2028",
    f"\x1b]0;touch {MARK}\x07",
    "%j%x",
    "a b  c",
    "*",
    "~",
    "\\",
    "#",
)


def as_profile(field: str) -> Callable[[str, Path], tuple[Profile, dict[str, Any]]]:
    def build(value: str, _folder: Path) -> tuple[Profile, dict[str, Any]]:
        several = {"srun": (value,), "environment": {"KEY": value}, "sbatch": {"comment": value}}
        return Profile(**{field: several.get(field, value)}), {}

    return build


def as_option(value: str, _folder: Path) -> tuple[Profile, dict[str, Any]]:
    return Profile(sbatch={value: "x"}), {}


def as_variable(value: str, _folder: Path) -> tuple[Profile, dict[str, Any]]:
    return Profile(environment={value: "x"}), {}


def as_dependency(value: str, _folder: Path) -> tuple[Profile, dict[str, Any]]:
    return Profile(), {"after": value}


def as_folder(value: str, folder: Path) -> tuple[Profile, dict[str, Any]]:
    run = folder / value.replace("\0", "") / "run"
    check_in_script(run)
    return Profile(), {"run": run}


WAYS = {
    **{
        field: as_profile(field)
        for field in ("partition", "account", "qos", "constraint", "interface", "gpu")
    },
    **{field: as_profile(field) for field in ("srun", "environment", "sbatch")},
    "an option of sbatch": as_option,
    "a variable": as_variable,
    "--after": as_dependency,
    "run.root": as_folder,
}


def write_stubs(folder: Path) -> Path:
    """Programs that do nothing, in a folder for PATH."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for name in ("srun", "python"):
        (stubs / name).write_text("#!/bin/sh\n")
        (stubs / name).chmod(0o755)
    return stubs


def script_with(profile: Profile, run: Path, after: str | None) -> str:
    job = run / "jobs" / "001"
    request = Request(
        run=str(run),
        command=("and_dist", "train", "--config", str(job / "config.yaml")),
        nodes=1,
        workers=1,
        gpus=0,
        seconds=3600,
        python="python",
        host_python="python",
        code=str(job / "code"),
        profile=profile,
    )
    return script_of(job, [job], request, "run", after)


@pytest.mark.parametrize("way", WAYS)
def test_no_value_reaches_a_shell(way: str, tmp_path: Path) -> None:
    stubs, refused = write_stubs(tmp_path), 0
    for value in HOSTILE:
        try:
            profile, given = WAYS[way](value, tmp_path)
            script = script_with(profile, given.get("run", tmp_path / "run"), given.get("after"))
        except ValueError:
            refused += 1
            continue
        environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
        ended = subprocess.run(
            ["sh"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, (value, ended.stderr)
        assert not (tmp_path / MARK).exists(), value
        # sbatch reads its options up to the first command.
        head = itertools.takewhile(lambda line: not line or line[0] == "#", script.split("\n"))
        assert not any(line.startswith("#SBATCH --wrap") for line in head), value
    assert refused < len(HOSTILE) or way in ("an option of sbatch", "a variable", "--after")
