"""Short runs with names that are markup, and pages as a browser sees them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from and_dist.cli import main
from and_dist.config.load import load_config
from and_dist.distributed.watchdog import Watchdog
from and_dist.runs.metrics_file import stream
from and_dist.training.session import run_training
from and_dist.utils.seals import seal_line
from slurm.testcluster.cluster import PATIENCE
from tests.pictures import Size, picture, save

ARTEFACTS = Path("artefacts")
"""Screenshots, to be looked at."""
CLASSES = (
    "<img src=x onerror=pwned=1>",
    "\"'><b>quoted",
    "😀 emoji",
    "\u202eأبجد",
    "n02099601_golden_retriever",
)
FILES = (
    "<svg onload=pwned=1>{}.png",
    "\"'{}&amp;.png",
    "😀{}.png",
    "\u202eعربي{}.png",
    "\udcff\x1b[31m{}.png",
    "IMG_2024-05-17_holiday-in-the-mountains_with_everyone_{}_final.png",
)
SHORT = (
    "data.limit=null",
    "data.limit_test=null",
    "curriculum.epochs=2",
    "optim.milestones=[1]",
    "curriculum.neighbours=2",
    "optim.batch_size=16",
    "evaluation.every=1",
    "run.threads=1",
)


@dataclass
class Watched:
    """A page, and what it did that it should not."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def scroll_through(self) -> None:
        """So that everything is drawn."""
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 800):
            self.page.evaluate("top => scrollTo(0, top)", top)
            self.page.wait_for_timeout(40)
        self.wait_for_charts()
        self.page.evaluate("scrollTo(0, 0)")

    def wait_for_charts(self) -> None:
        expect(self.page.locator(".chart:not([data-ready])")).to_have_count(
            0, timeout=1000 * PATIENCE
        )

    def keep(self, name: str) -> None:
        ARTEFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


Open = Callable[..., Watched]
Scheme = Literal["light", "dark"]


def save_images(
    folder: Path, count: int, classes: tuple[str, ...], seed: int, size: Size = (24, 24)
) -> Path:
    for number in range(count):
        name = FILES[number % len(FILES)].format(number)
        label = classes[number % len(classes)] if classes else ""
        save(folder / label / name, picture(seed + number, size))
    return folder


def trained(root: Path, name: str, *overrides: str) -> Path:
    config = load_config(
        ["configs/debug.yaml"], [f"run.root={root}", f"name={name}", *SHORT, *overrides]
    )
    run_training(config, Watchdog(), "quiet")
    return config.folder


def add_to_metrics(run: Path, figures: dict[str, float | None], events: tuple[str, ...]) -> None:
    """As a revision writes them that measures more at the ends of epochs and rounds."""
    file = run / "metrics.jsonl"
    more = [line | (figures if line["event"] in events else {}) for line in stream(file)]
    file.write_bytes(b"".join(seal_line(line, number) for number, line in enumerate(more, 1)))


def command(*arguments: object) -> None:
    """and-dist in this process, to a good end."""
    before, sys.argv = sys.argv, ["and-dist", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        main()
    sys.argv = before
    assert not ended.value.code
