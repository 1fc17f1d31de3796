"""Every command that writes, each in a folder of its own with what it needs."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from tests.foreign_files.campaign import Scene
from tests.foreign_files.child import run_command
from tests.pictures import cut_pixels, noise, picture, save, save_pictures

DEBUG = str(Path("configs/debug.yaml").absolute())
TINY = (
    "run.root=runs",
    "data.limit=40",
    "data.limit_test=32",
    "curriculum.rounds=1",
    "curriculum.epochs=1",
    "optim.batch_size=20",
    "optim.milestones=[]",
    "evaluation.knn=5",
)
PROBES = ("evaluation.linear.epochs=1", "evaluation.linear.milestones=[]")


def lay_photos(folder: Path) -> None:
    """Two classes of photos in photos/, one of which cannot be read."""
    save_pictures(folder / "photos", [(24, 18)] * 4, "ab", ["jpg", "png"])


def lay_bad_photos(folder: Path) -> None:
    lay_photos(folder)
    cut_pixels(save(folder / "photos" / "a" / "9.jpg", picture(9, (40, 30))))


def lay_splits(folder: Path) -> None:
    for split in ("train", "val"):
        save_pictures(folder / "photos" / split, [(24, 18)] * 2, "ab", ["png"])


def lay_idx(folder: Path) -> None:
    """The four files of an MNIST-style set in files/."""
    (folder / "files").mkdir()
    for prefix, count in (("train", 4), ("t10k", 2)):
        images, digits = noise(count, (count, 28, 28)), np.arange(count, dtype=np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", digits)):
            header = struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape)
            content = gzip.compress(header + values.tobytes(), mtime=0)
            (folder / "files" / f"{prefix}-{kind}-ubyte.gz").write_bytes(content)


def serve_idx() -> None:
    """Let torchvision fetch Fashion-MNIST from files/ of the scene, over HTTP on this machine."""
    from torchvision.datasets import FashionMNIST

    files = Path("files").absolute()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(files)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    FashionMNIST.mirrors = [f"http://127.0.0.1:{server.server_port}/"]
    FashionMNIST.resources = [
        (name, hashlib.md5((files / name).read_bytes()).hexdigest())
        for name, _ in FashionMNIST.resources
    ]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: standard error is the command's."""


@cache
def trained() -> Path:
    """A folder with runs/debug, trained once."""
    folder = Path(tempfile.mkdtemp(prefix="and-dist-trained-"))
    outcome = run_command(("and-dist", "train", "--config", DEBUG, *TINY), folder)
    assert outcome.status == 0, outcome.said
    return folder


def lay_run(folder: Path) -> None:
    """A finished run and two photos."""
    shutil.copytree(trained() / "runs", folder / "runs")
    lay_photos(folder)


def lay_sweep(folder: Path) -> None:
    overrides = ", ".join(f'"{word}"' for word in TINY)
    (folder / "sweep.yaml").write_text(
        f"name: two\nconfig: [{DEBUG}]\noverrides: [{overrides}]\ngrid: {{seed: [0]}}\n"
    )


def lay_nothing(_: Path) -> None:
    """The command needs nothing."""


def _prepare(name: str, lay: Callable[[Path], None], *options: str) -> Scene:
    source = ("files",) if lay is lay_idx else ("photos",)
    command = ("and-dist", "prepare", *source, "--out", "out", "--workers", "1", *options)
    return Scene(name, command, lay, source=source)


def _of_run(name: str, *arguments: str) -> Scene:
    return Scene(name, ("and-dist", *arguments), lay_run, source=("photos",))


PREPARE = (
    _prepare("prepare", lay_photos),
    _prepare("prepare --pack", lay_photos, "--pack"),
    _prepare("prepare --pack --resize", lay_splits, "--pack", "--resize", "9"),
    _prepare("prepare --raw", lay_photos, "--raw", "9"),
    _prepare("prepare --bad-images skip", lay_bad_photos, "--verify", "--bad-images", "skip"),
    _prepare("prepare of pixels", lay_idx),
    Scene(
        "prepare --download",
        ("and-dist", "prepare", "--download", "fashion_mnist", "--out", "out"),
        lay_idx,
        serve_idx,
        ("files",),
    ),
)
TRAIN = (
    Scene("train", ("and-dist", "train", "--config", DEBUG, *TINY), lay_nothing),
    Scene(
        "train, with profile and copies",
        (
            "and-dist",
            "train",
            "--config",
            DEBUG,
            *TINY,
            "curriculum.epochs=40",
            "optim.batch_size=40",
            "run.keep=1",
            "run.profile=true",
            "run.wandb=offline",
        ),
        lay_nothing,
        below=("runs/debug/profile", "runs/debug/wandb"),
    ),
)
READ = (
    _of_run("discover", "discover", "runs/debug"),
    _of_run("discover --out", "discover", "runs/debug", "--out", "found"),
    _of_run("evaluate --knn", "evaluate", "runs/debug", "--knn"),
    _of_run("evaluate --linear", "evaluate", "runs/debug", "--linear", *PROBES),
    _of_run("export", "export", "runs/debug"),
    _of_run("export --format onnx", "export", "runs/debug", "--format", "onnx", "--out", "left"),
    _of_run(
        "neighbours",
        "neighbours",
        "runs/debug",
        "photos/a/0.jpg",
        "--count",
        "2",
        "--sheet",
        "sheet.png",
    ),
    _of_run("embed", "embed", "runs/debug", "photos", "--out", "features.npy"),
    _of_run("report", "report", "runs/debug"),
    _of_run("report --out", "report", "runs/debug", "--out", "pages/page.html"),
    _of_run("table", "table", "runs/debug", "--out", "table.md"),
    _of_run("plan", "plan", "--config", DEBUG, *TINY),
)
LAUNCH = (
    Scene(
        "local",
        ("and-launch", "local", "--config", DEBUG, *TINY),
        lay_nothing,
        below=("runs/debug/jobs", "runs/debug/logs"),
        kinds=("file", "files inside"),
    ),
    Scene(
        "sweep --local",
        ("and-launch", "sweep", "sweep.yaml", "--local"),
        lay_sweep,
        below=("runs/two/sweep.json",),
    ),
    Scene(
        "submit --dry-run",
        ("and-launch", "submit", "--dry-run", "--gpus", "0", "--config", DEBUG, *TINY),
        lay_nothing,
    ),
)
SCENES = (*PREPARE, *TRAIN, *READ, *LAUNCH)
