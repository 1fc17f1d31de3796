"""Runs, their pages, and a browser to look at them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from slurm.testcluster.cluster import PATIENCE
from tests.end_to_end.processes import train_interrupted
from tests.report.runs import (
    CLASSES,
    Open,
    Watched,
    add_to_metrics,
    command,
    save_images,
    trained,
)
from tests.suites import skip_without

CHROMIUM = ("--no-sandbox", "--disable-gpu", "--in-process-gpu", "--disable-gpu-watchdog")
"""Arguments of Chromium. It draws without a GPU, and ends no process of its own that is slow: on a
busy machine, pages were left without frames for minutes, while their scripts ran."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        skip_without("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*CHROMIUM])
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Browser) -> Iterator[Open]:
    opened = []

    def call(address: str | Path, width: int = 1200, scheme: str = "light") -> Watched:
        opened.append(open_page(chromium, address, width, scheme))
        return opened[-1]

    yield call
    for watched in opened:
        watched.page.context.close()


@pytest.fixture(scope="module")
def seen(chromium: Browser, pages: dict[str, Path]) -> Iterator[Callable[[str], Watched]]:
    """A page of some kind that has been scrolled through, for tests that only read it."""
    opened = {}

    def call(kind: str) -> Watched:
        if kind not in opened:
            opened[kind] = open_page(chromium, pages[kind], 1200, "light")
            opened[kind].scroll_through()
        return opened[kind]

    yield call
    for watched in opened.values():
        watched.page.context.close()


def open_page(chromium: Browser, address: str | Path, width: int, scheme: str) -> Watched:
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    context.set_default_timeout(1000 * PATIENCE)
    watched = Watched(context.new_page())
    watched.page.on("console", lambda message: watched.complaints.append(message.text))
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    url = f"file://{address.resolve()}" if isinstance(address, Path) else address
    watched.page.goto(url)
    return watched


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    save_images(folder / "train", 64, CLASSES, 0)
    save_images(folder / "test", 24, CLASSES, 1000)
    save_images(folder / "flat", 48, (), 2000, (300, 200))
    return folder


@pytest.fixture(scope="session")
def labelled(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = f"data.train={images}/train", f"data.test={images}/test"
    return trained(tmp_path_factory.mktemp("runs"), "labelled", *data)


@pytest.fixture(scope="session")
def rival(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = f"data.train={images}/train", f"data.test={images}/test"
    return trained(tmp_path_factory.mktemp("runs"), "rival", *data, "method=instance")


@pytest.fixture(scope="session")
def unlabelled(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = f"data.train={images}/flat", "data.test=null"
    return trained(tmp_path_factory.mktemp("runs"), "unlabelled", *data)


@pytest.fixture(scope="session")
def measured(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labelled run with the figures of every epoch and round that tell of a collapse."""
    run = Path(shutil.copytree(labelled, tmp_path_factory.mktemp("runs") / "measured"))
    figures = {"probe_bank": 0.625, "spread": 0.9, "mean_norm": 0.1, "neighbour_entropy": 0.5}
    add_to_metrics(run, figures, ("epoch", "round"))
    return run


@pytest.fixture(scope="session")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_interrupted(tmp_path_factory.mktemp("runs"), "evaluation.baselines=false")


@pytest.fixture(scope="session")
def pages(
    labelled: Path,
    rival: Path,
    unlabelled: Path,
    resumed: Path,
    measured: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Kind -> file, in a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("pages")
    asked: dict[str, tuple[object, ...]] = {
        "labelled": (labelled,),
        "unlabelled": (unlabelled,),
        "resumed": (resumed,),
        "compared": (labelled, "--compare", rival),
        "rival": (rival,),
        "measured": (measured,),
    }
    for kind, arguments in asked.items():
        command("report", *arguments, "--out", folder / f"{kind}.html")
    return {kind: folder / f"{kind}.html" for kind in asked}
