"""Give the commands of the docs a folder like a checkout in which the demo has been trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from and_dist.data.datasets import load_images
from and_dist.data.stores import MemoryStore
from tests.suites import Guard

LINKS = (
    ".venv",
    "Makefile",
    "and_dist",
    "benchmarks",
    "configs",
    "constraints.txt",
    "docs",
    "launcher",
    "pyproject.toml",
    "tests",
)
SHORT = ("data.limit=200", "data.limit_test=100", "curriculum.epochs=1", "evaluation.knn=20")


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with links to a checkout, photos, and runs of the demo and of photos."""
    from and_dist.config.load import load_config
    from and_dist.distributed.watchdog import Watchdog
    from and_dist.training.session import run_training

    folder, here = tmp_path_factory.mktemp("checkout"), Path.cwd()
    for name in LINKS:
        (folder / name).symlink_to(here / name)
    for name in ("examples", "slurm"):  # commands write there
        (folder / name).mkdir()
        for file in (here / name).iterdir():
            (folder / name / file.name).symlink_to(file)
    draw_photos(folder / "photos")
    own = (f"data.train={folder}/photos/train", f"data.test={folder}/photos/val")
    runs = {"demo": (), "demo-control": ("method=instance",), "photos": own}
    with Guard.lowered():
        for name, more in runs.items():
            given = [f"run.root={folder / 'runs'}", f"name={name}", "run.threads=1", *SHORT, *more]
            run_training(load_config(["configs/demo.yaml"], given), Watchdog(), "quiet")
    for place in (folder / "mine.jpg", folder / "photos" / "IMG_0100.jpg"):
        Image.new("RGB", (80, 60), (200, 90, 30)).save(place)
    return folder


def draw_photos(folder: Path) -> None:
    """Write the embedded images as class folders of JPEGs, for training and for testing."""
    images = load_images("shapes/train", 64, "data.train", "stop")
    store, labels_N = images.index.store, images.labels_N
    assert isinstance(store, MemoryStore)
    assert labels_N is not None
    for row, label in enumerate(labels_N.tolist()):
        part = "train" if row < 48 else "val"
        place = folder / part / images.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(store.pixels(row)).save(place / f"{row:04}.jpg", quality=95)
