"""Runs with names that are markup, their pages, and a browser to look at them."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from and_dist.cli import main, run_training
from and_dist.config import load_config
from and_dist.guard import Guard
from tests.end_to_end.processes import DEBUG, finish, start, steps, wait_until
from tests.pictures import picture, save

ARTEFACTS = Path("artefacts")
"""Screenshots, to be looked at."""
CLASSES = ("<img src=x onerror=pwned=1>", "\"'><b>quoted", "😀 emoji", "\u202eأبجد")
FILES = ("<svg onload=pwned=1>{}.png", "\"'{}&amp;.png", "😀{}.png", "\u202eعربي{}.png")
SHORT = (
    "data.limit=null", "data.limit_test=null", "curriculum.epochs=2", "optim.milestones=[1]",
    "curriculum.neighbours=2", "optim.batch_size=16", "evaluation.every=1", "run.threads=1",
)  # fmt: skip


@dataclass
class Watched:
    """A page, and what it did that it should not."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def scroll_through(self) -> None:
        """So that everything is drawn."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 400):
            self.page.evaluate("top => scrollTo(0, top)", top)
            self.page.wait_for_timeout(40)
        drawn = "[...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg'))"
        self.page.wait_for_function(drawn)
        self.page.evaluate("scrollTo(0, 0)")

    def keep(self, name: str) -> None:
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


Open = Callable[..., Watched]
Scheme = Literal["light", "dark"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no chromium here; Debian's package of that name will do")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(chromium: Browser) -> Iterator[Open]:
    opened = []

    def call(address: str | Path, width: int = 1200, scheme: str = "light") -> Watched:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        opened.append(context)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: watched.complaints.append(message.text))
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        url = f"file://{address.resolve()}" if isinstance(address, Path) else address
        watched.page.goto(url)
        return watched

    yield call
    for context in opened:
        context.close()


def save_images(folder: Path, count: int, classes: tuple[str, ...], seed: int) -> Path:
    for number in range(count):
        name = FILES[number % len(FILES)].format(number)
        label = classes[number % len(classes)] if classes else ""
        save(folder / label / name, picture(seed + number, (24, 24)))
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    save_images(folder / "train", 64, CLASSES, 0)
    save_images(folder / "test", 24, CLASSES, 1000)
    save_images(folder / "flat", 48, (), 2000)
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
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed once, told to end once."""
    root = tmp_path_factory.mktemp("runs")
    command, run = (*DEBUG, f"run.root={root}", "evaluation.baselines=false"), root / "debug"
    for number, at_step in ((signal.SIGKILL, 8), (signal.SIGTERM, 20)):
        process = start(*command)
        wait_until(lambda at=at_step: steps(run) >= at, process)
        process.send_signal(number)
        process.wait(60)
    status, output = finish(start(*command))
    assert status == 0, output
    return run


def trained(root: Path, name: str, *overrides: str) -> Path:
    config = load_config(
        ["configs/debug.yaml"], [f"run.root={root}", f"name={name}", *SHORT, *overrides]
    )
    run_training(config, Guard(), "quiet")
    return config.folder


def command(*arguments: object) -> None:
    """and-dist in this process, to a good end."""
    before, sys.argv = sys.argv, ["and-dist", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        main()
    sys.argv = before
    assert not ended.value.code


@pytest.fixture(scope="session")
def pages(
    labelled: Path,
    rival: Path,
    unlabelled: Path,
    resumed: Path,
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
    }
    for kind, arguments in asked.items():
        command("report", *arguments, "--out", folder / f"{kind}.html")
    return {kind: folder / f"{kind}.html" for kind in asked}
