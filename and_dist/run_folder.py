"""A run's folder: what was asked for and with what it runs, checked when the run goes on.

RUN/config.yaml       the resolved config
RUN/environment.json  versions, revision and machine of each start
RUN/metrics.jsonl  RUN/summary.json  RUN/checkpoints/  RUN/lock  RUN/stalls/
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from and_dist.config import Config, differing_keys
from and_dist.plain_yaml import read_yaml
from and_dist.world import World

PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "faiss-gpu", "numpy", "pydantic")


def check_run_folder(config: Config) -> None:
    """ValueError if the folder holds another run; nothing is written."""
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run folder {folder} is a file; choose another name=... or run.root=...")
    written = folder / "config.yaml"
    if written.exists():
        differences = differing_keys(config, read_yaml(written))
        if differences:
            raise ValueError(
                f"run folder {folder} belongs to another config ({'; '.join(differences)}); "
                "choose another name=... or delete the folder"
            )
    elif folder.exists() and any(_is_anothers(path) for path in folder.iterdir()):
        raise ValueError(
            f"run folder {folder} is not empty and holds no run of ours (no config.yaml); "
            "choose another name=..."
        )


def open_run_folder(config: Config, world: World) -> None:
    """Write down config and environment; the coordinator's business."""
    config.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    replace_file(config.folder / "config.yaml", text)
    starts = config.folder / "environment.json"
    history = [*_read_starts(starts), describe_environment(world)]
    replace_file(starts, json.dumps(history, indent=1))


def note_resumption(folder: Path, checkpoint: str, steps_again: int) -> None:
    """What the start that was written down last goes on from, and how much it does again."""
    path = folder / "environment.json"
    *earlier, latest = _read_starts(path) or [{}]
    steps_again += latest.get("steps_again", 0)  # of roll-backs
    latest |= {"continued_from": checkpoint, "steps_again": steps_again}
    replace_file(path, json.dumps([*earlier, latest], indent=1))


def describe_environment(world: World) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "world_size": world.size,
        "device": world.device.type,
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "revision": git_revision(),
        "command": sys.argv,
    }


def git_revision() -> str | None:
    """Commit of the source tree, `-dirty` appended if it was changed; None outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def replace_file(path: Path, text: str) -> None:
    """Write a file so that it is never half there, not even where the power fails."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _is_anothers(path: Path) -> bool:
    """Not what a start of ours leaves behind that was ended before it had written config.yaml."""
    return path.name != "lock" and not path.name.startswith(".")


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """For people alone, so a damaged one is begun anew."""
    try:
        return list(json.loads(path.read_text()))
    except (OSError, ValueError):
        return []
