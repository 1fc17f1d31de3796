"""Keep a run's folder: what was asked for and with what it ran, checked when the run resumes.

RUN/config.yaml       the resolved config
RUN/environment.json  versions, revision and machine of each start
RUN/metrics.jsonl  RUN/summary.json  RUN/checkpoints/  RUN/lock  RUN/stalls/
RUN/neighbourhoods/   a picture of the neighbourhoods of each round, for the trackers
RUN/jobs/  RUN/logs/  of runs that and-launch starts

No torch: a login node checks a run folder too.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from and_dist.config.comparison import differing_keys, keep_choices
from and_dist.config.load import load_run_config
from and_dist.config.schema import Config, EncoderConfig
from and_dist.config.secret_values import hide_secrets
from and_dist.config.validation import MOST_SAID
from and_dist.config.yaml_files import read_yaml
from and_dist.distributed.launch_env import job_began, process_began
from and_dist.runs.lock import is_lock
from and_dist.runs.metrics_file import Forgotten, is_metrics
from and_dist.runs.records import LONGEST_TEXT, TIME, Start, check, parse, say_damage, say_left_out
from and_dist.utils.formatting import as_text
from and_dist.utils.owned_files import (
    NotOursError,
    check_file,
    is_json_with,
    kind_of,
    make_folder,
    or_empty,
    starts_with,
    write_file,
)
from and_dist.utils.plain_files import read_plain
from and_dist.utils.seals import is_as_written, seal, seal_text, unseal

PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "faiss-gpu",
    "numpy",
    "pydantic",
)
FILES = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "lock")
"""The files of a run itself."""
FOLDERS = ("checkpoints", "evaluation", "jobs", "logs", "neighbourhoods", "stalls")
"""The folders that are read in a run folder."""
NESTED = (
    "evaluation/*",
    "evaluation/*/*",
    "jobs/*",
    "jobs/*/start-*",
    "logs/*",
    "neighbourhoods/round-*.png",
    "stalls/*",
)
"""Patterns of the other places in a run folder where this program opens or looks for files."""
is_config = starts_with(r"(# written by and-dist, .*\n)?name: ")
is_history = is_json_with("started")
is_summary = is_json_with("rounds", "raw_pixels", "seconds")
REVISION_FILE = "revision.txt"
"""Beside the packages, in a copy of the code that is no checkout."""


def check_run_folder(config: Config) -> None:
    """Raise ValueError if the folder holds another run; write nothing."""
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run folder {folder} is a file; choose another name=... or run.root=...")
    written = folder / "config.yaml"
    if written.exists():
        check_file(written, is_config)
        say_if_changed(written)
        differences = differing_keys(config, read_yaml(written, may_be_link=False))
        if differences:
            several = differences[:MOST_SAID]
            if len(differences) > len(several):
                several.append(f"{len(differences) - len(several):,} more keys")
            raise ValueError(
                f"run folder {folder} belongs to another config ({'; '.join(several)}); "
                "choose another name=... or delete the folder"
            )
        check_own_names(folder)
    elif folder.exists() and any(_is_anothers(path) for path in folder.iterdir()):
        raise ValueError(
            f"run folder {folder} is not empty and holds no run of ours (no config.yaml); "
            "choose another name=..."
        )


def keep_choices_of_run(config: Config) -> Config:
    """Return the config with what the run chose for its keys of `auto` when it first started."""
    written = config.folder / "config.yaml"
    if not written.exists():
        return config
    was_on_gpu = any(start.get("device") == "cuda" for start in read_starts(config.folder))
    return keep_choices(config, read_yaml(written, may_be_link=False), was_on_gpu)


def config_of(run: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a run that is opened, by whoever it was trained.

    Raise ValueError if the folder holds no run, or links to what lies outside of it.
    """
    config = load_run_config(run, overrides)
    check_inside(run)
    say_if_changed(run / "config.yaml")
    return config


def say_if_changed(file: Path) -> None:
    """Say that a config.yaml is not what this program has written, if it is not."""
    if not is_as_written(read_plain(file, "replace")):
        say_damage(f"{file} is not as and-dist wrote it: somebody edited it, or it is damaged")


def check_inside(run: Path) -> None:
    """Raise ValueError where a run folder has a link, a device or a pipe in a place that is read.

    A link could lead to any file of the reader's, which would be shown or written to.
    """
    either = "file or folder"
    expected = dict.fromkeys(FILES, "file") | dict.fromkeys(FOLDERS, "folder")
    kinds = {run / name: kind for name, kind in expected.items()}
    kinds |= {path: either for pattern in NESTED for path in run.glob(pattern)}
    for path, allowed in kinds.items():
        kind = kind_of(path)
        if kind and kind not in allowed.split():
            raise NotOursError(
                f"{as_text(str(path))} is a {kind}, and a run has a {allowed} there: move it away"
            )


def check_own_names(folder: Path) -> None:
    """Raise NotOursError where something else has a name in a run folder that this program uses."""
    check_file(folder / "config.yaml", is_config)
    check_file(folder / "environment.json", is_history)
    check_file(folder / "metrics.jsonl", or_empty(is_metrics))
    check_file(folder / "summary.json", is_summary)
    check_file(folder / "lock", is_lock)
    check_inside(folder)


def write_config(config: Config, folder: Path, of: str = "") -> None:
    """Write the resolved config into the folder; `of` says whose it is, where it is not a run's."""
    make_folder(folder)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_file(folder / "config.yaml", seal_text(text, of), is_config)


def open_run_folder(
    config: Config, world_size: int, device: str, figures: Mapping[str, Any] | None = None
) -> list[str]:
    """Write down config and environment, on the coordinator, with figures that decided on it.

    Return what has changed since the last start.
    """
    write_config(config, config.folder)
    history, now = read_starts(config.folder), describe_environment(config, world_size, device)
    now |= figures or {}
    _write_starts(config.folder, [*_all_starts(config.folder), now])
    return changed_environment(history[-1], now) if history else []


def record_loaded(folder: Path) -> None:
    """Record that the newest start has loaded everything, and begins to train."""
    *earlier, latest = _all_starts(folder) or [{}]
    _write_starts(folder, [*earlier, {"loaded": round(time.time(), 3), **latest}])


def record_resume(folder: Path, checkpoint: str, steps_again: int, forgotten: Forgotten) -> None:
    """Record which checkpoint the newest start resumes from, and what it does again.

    A start that rolls back resumes more than once.
    """
    *earlier, latest = _all_starts(folder) or [{}]
    steps_again += latest.get("steps_again", 0)
    seconds_again = latest.get("seconds_again", 0.0) + forgotten.seconds
    first = {"loaded": round(time.time(), 3), "silent_since": forgotten.last_time}
    again = {"steps_again": steps_again, "seconds_again": round(seconds_again, 3)}
    _write_starts(folder, [*earlier, first | latest | {"continued_from": checkpoint} | again])


@contextmanager
def record_run_end(folder: Path, is_writer: bool) -> Iterator[None]:
    """Record when and how a start ended, unless it was killed."""
    how = "finished"
    try:
        yield
    except BaseException as error:
        how = str(error) or type(error).__name__
        raise
    finally:
        if is_writer:
            with contextlib.suppress(OSError, ValueError):  # a full disk is reported elsewhere
                *earlier, latest = _all_starts(folder) or [{}]
                latest |= {"ended": time.strftime(TIME), "how": how[:LONGEST_TEXT]}
                latest |= {"metrics_bytes": _size_of(folder / "metrics.jsonl")}
                _write_starts(folder, [*earlier, latest])


def describe_environment(config: Config, world_size: int, device: str) -> dict[str, Any]:
    """Return what a start runs with: machine, arithmetic, versions, revision and command."""
    return {
        "started": time.strftime(TIME),
        "began": round(process_began(), 3),
        "job_began": job_began(),
        "world_size": world_size,
        "device": device,
        **describe_arithmetic(config.encoder, device),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "revision": revision(),
        "command": hide_secrets(sys.argv),
    }


def describe_arithmetic(encoder: EncoderConfig, device: str) -> dict[str, Any]:
    """Return to what an encoder that trains rounds, and whether a step repeats to the bit."""
    rounds = device == "cuda" and encoder.precision == "float32" and encoder.tf32
    return {
        "convolutions": "TF32" if rounds else encoder.precision,
        "deterministic": device == "cpu" or encoder.deterministic,
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that matter; a login node may lack some."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def changed_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `torch: 2.11.0 -> 2.15.0` for all that may change what is computed."""

    def flat(start: Mapping[str, Any]) -> dict[str, Any]:
        keys = ("world_size", "device", "python", "revision")
        return {**{key: start.get(key) for key in keys}, **start.get("packages", {})}

    was, is_now = flat(before), flat(now)
    return [
        f"{key}: {was.get(key)} -> {is_now.get(key)}"
        for key in sorted(was.keys() | is_now.keys())
        if was.get(key) != is_now.get(key)
    ]


def revision() -> str | None:
    """Return the commit of the source tree, with `-dirty` appended if it was changed.

    Return None outside of a checkout.
    """
    root = Path(__file__).parents[2]
    with contextlib.suppress(FileNotFoundError):
        return (root / REVISION_FILE).read_text().strip() or None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _write_starts(folder: Path, starts: list[dict[str, Any]]) -> None:
    """Write environment.json; the newest start alone is sealed anew."""
    path, (*earlier, latest) = folder / "environment.json", starts
    write_file(path, json.dumps([*earlier, seal(latest, path.name)], indent=1), is_history)


def _is_anothers(path: Path) -> bool:
    """Return whether a file is none that a start of ours leaves before it writes config.yaml."""
    return path.name != "lock" and not path.name.startswith(".")


def _all_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the starts as they stand in environment.json; none if the file cannot be read."""
    try:
        found = parse(read_plain(folder / "environment.json"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) and all(isinstance(s, dict) for s in found) else []


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the starts so far; what is damaged is left out, and said."""
    path, sound = folder / "environment.json", []
    try:
        found = parse(read_plain(path))
        if not isinstance(found, list) or not found:
            raise ValueError("it is no list of starts")
    except FileNotFoundError:
        if _size_of(folder / "metrics.jsonl"):
            say_damage(f"{path} is missing")
        return []
    except (OSError, ValueError) as error:
        say_left_out(path, error)
        return []
    for at, start in enumerate(found, 1):
        try:
            sound.append(check(Start, unseal(start, path.name)))
        except ValueError as error:
            say_damage(f"start {at} in {path} is damaged and left out: {error}")
    return sound


def say_if_cut(folder: Path, starts: Sequence[Mapping[str, Any]]) -> None:
    """Say that metrics.jsonl has lost its end, if it is shorter than when the last start ended."""
    path = folder / "metrics.jsonl"
    expected = starts[-1]["metrics_bytes"] if starts and starts[-1]["ended"] else None
    if expected is not None and (size := _size_of(path)) < expected:
        say_damage(f"{path} has {size:,} bytes, and had {expected:,} when the run ended")


def _size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 where there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0
