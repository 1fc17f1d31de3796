"""Ways to bend a run folder: links and devices in the place of files, odd contents, odd values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from and_dist.checkpoint.storage import _sum_of_state

ODD = (
    None,
    True,
    -1,
    10**30,
    10**11,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "x" * 100_000,
    "/dev/zero",
    "../../outside/secret",
    "shard-1-model-1-of-1.safetensors/../../../../outside/secret",
    "--user=root",
    "\x1b]52;c;aGVsbG8=\x07\x1b[2J",
    "</script><script>alert(1)</script>",
    [],
    {},
    [[[[]]]],
    {"a": {"b": {"c": 1}}},
    ["x"] * 3,
    [1, 2, 3],
)
"""Values that a key of ours never has, or not there."""
RAW = (
    b"",
    b"\0" * 100,
    b"null\n",
    b"[]\n",
    b'"x"\n',
    b"3\n",
    b"{}\n",
    b"[{}]\n",
    b'{"event": "round"}\n',
    b'{"event": ["step"], "time": "x"}\n',
    b"[" * 100_000,
    b"9" * 10_000 + b"\n",
    b"\xff\xfe\xfd\n",
    b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghij"
    ),
    b"name: a\nbase: ../outside/secret.yaml\n",
    b"name: !!python/object/apply:os.system ['touch executed']\n",
    b"cos\nsystem\n(S'touch executed'\ntR.",
)
"""Contents of whole files."""


@dataclass(frozen=True)
class Trial:
    """One way to bend a folder."""

    what: str
    bend: Callable[[Path], None]


def files_of(run: Path) -> list[str]:
    """The files of ours in a run, except what nothing reads."""
    found = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return [str(path) for path in found if path.parts[0] != "tensorboard" and path.suffix != ".sh"]


def plants(run: Path) -> Iterator[Trial]:
    """Put a link, a device, a pipe, a folder or odd content in the place of every file, and a link
    in that of every folder."""

    def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
        def bend(folder: Path) -> None:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            put(path)

        return bend

    for name in files_of(run):
        yield Trial(f"{name} is a link", instead(name, lambda p: p.symlink_to(outside(p))))
        yield Trial(f"{name} is a link to a twin", instead(name, to_a_twin(run / name)))
        yield Trial(f"{name} is /dev/zero", instead(name, lambda p: p.symlink_to("/dev/zero")))
        yield Trial(f"{name} is a pipe", instead(name, os.mkfifo))
        yield Trial(f"{name} is a folder", instead(name, Path.mkdir))
        for content in RAW:
            put = instead(name, partial(Path.write_bytes, data=content))
            yield Trial(f"{name} holds {content[:40]!r}", put)
    folders = sorted({str(Path(name).parent) for name in files_of(run)} - {"."})
    for name in [*folders, "evaluation", "logs", "stalls", "jobs"]:
        if (run / name).is_dir():
            yield Trial(f"{name}/ is a link to a twin", instead(name, to_a_twin(run / name)))


def outside(path: Path) -> Path:
    """The file beside the run folder that nobody but its owner is to see."""
    return (
        next(parent for parent in path.parents if (parent / "outside").is_dir()) / "outside/secret"
    )


def to_a_twin(original: Path) -> Callable[[Path], None]:
    """Put a link to a copy of the original, which lies outside of the run."""

    def put(path: Path) -> None:
        twin = outside(path).with_name("twin")
        shutil.copytree(original, twin) if original.is_dir() else shutil.copy(original, twin)
        path.symlink_to(twin)

    return put


def changes(run: Path, random_: random.Random) -> Iterator[Trial]:
    """Change something at random, without end."""
    names = [name for name in files_of(run) if name.endswith((".json", ".jsonl", ".yaml"))]
    tensors = [name for name in files_of(run) if name.endswith(".safetensors")]
    while True:
        if tensors and random_.random() < 0.2:
            name, seed = random_.choice(tensors), random_.random()
            yield Trial(f"{name} bent by {seed}", partial(bend_tensors, name=name, seed=seed))
        else:
            name, seed = random_.choice(names), random_.random()
            yield Trial(f"{name} bent by {seed}", partial(bend_text, name=name, seed=seed))


def bend_text(run: Path, name: str, seed: float) -> None:
    """Change up to three values of a file of records; a state gets a sum that is right for it."""
    path, random_ = run / name, random.Random(seed)
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        at = random_.randrange(len(lines))
        lines[at] = json.dumps(bent(json.loads(lines[at]), random_))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(bent(yaml.safe_load(path.read_text()), random_)))
    else:
        value = bent(json.loads(path.read_text()), random_)
        sign(path, value)


def sign(path: Path, value: Any) -> None:
    """Write JSON; a state.json says its own sum, which its author can compute."""
    if path.name == "state.json" and isinstance(value, dict):
        value.pop("sha256", None)
        with contextlib.suppress(ValueError):
            value["sha256"] = _sum_of_state(json.loads(json.dumps(value)))
    path.write_text(json.dumps(value))


def bent(value: Any, random_: random.Random) -> Any:
    """Return a value with up to three of the values in it replaced, removed or added."""
    for _ in range(random_.randint(1, 3)):
        inside = [(None, None), *places(value)]
        parent, key = random_.choice(inside)
        odd = random_.choice(ODD)
        if parent is None:
            if random_.random() < 0.2:
                return odd
        elif random_.random() < 0.3:
            del parent[key]
        elif random_.random() < 0.2 and isinstance(parent, dict):
            parent[str(odd)] = parent[key]
        else:
            parent[key] = odd
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value with each of its keys."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    return [pair for key in keys for pair in ((value, key), *places(value[key]))]


def bend_tensors(run: Path, name: str, seed: float) -> None:
    """Change the header of a safetensors file, and the state that says its size and sum."""
    path, random_ = run / name, random.Random(seed)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if random_.random() < 0.5:
        sharding = bent(json.loads(header["__metadata__"]["DCP_SHARDING_INFO"]), random_)
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(sharding)
    else:
        header = bent(header, random_)
    encoded = json.dumps(header).encode()
    size = random_.choice([len(encoded)] * 4 + [0, 2**62])
    path.write_bytes(size.to_bytes(8, "little") + encoded + content[8 + length :])
    resign(path)


def resign(path: Path) -> None:
    """Let the state beside a file say its size and sum as they are."""
    state = path.with_name("state.json")
    about = json.loads(state.read_text())
    content = path.read_bytes()
    about["files"][path.name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    sign(state, about)
