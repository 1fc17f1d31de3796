"""Draw the README's pictures from the runs of `make demo` and `make demo-control`: `make pictures`.

docs/images/report.png shows the first screens of the demo's report, docs/images/terminal.png the
output of the same command, typed once more after the run has finished. Chromium draws both.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from tests.report.runs import Watched

FOLDER = Path("docs/images")
RUN, CONTROL = Path("runs/demo"), Path("runs/demo-control")
TYPED = "torchrun --nproc-per-node=2 -m and_dist train --config configs/demo.yaml"
WIDTH, HEIGHT, COLUMNS = 1200, 1262, 96
COLOURS = 128
"""The most colours of a picture; more would make it larger, and nobody sees them."""
SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><style>
.{unique_id}-matrix {{ font-family: "DejaVu Sans Mono", monospace; font-size: {char_height}px;
line-height: {line_height}px; }} .{unique_id}-title {{ font: bold 18px sans-serif; }} {styles}
</style><defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}"
height="{terminal_height}"/></clipPath>{lines}</defs>{chrome}<g transform="translate({terminal_x},
{terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>"""
"""A form for rich's picture of a terminal, with fonts of this machine alone."""


def draw_terminal(browser: Browser, file: Path) -> None:
    """Type the command of the finished run, and draw its output."""
    command = [sys.executable, "-m", "torch.distributed.run", *TYPED.split()[1:]]
    with tempfile.TemporaryDirectory() as folder:  # a start of the run itself would be recorded
        shutil.copytree(RUN, Path(folder) / RUN)
        (Path(folder) / "configs").symlink_to(Path("configs").absolute())
        given = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(Path.cwd())}}
        done = subprocess.run(command, capture_output=True, text=True, check=True, **given)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {TYPED}", style="bold"))
    console.print(Text.from_ansi(done.stdout))
    svg = console.export_svg(title="and-dist", code_format=SVG, theme=SVG_EXPORT_THEME)
    page = browser.new_page(viewport={"width": WIDTH, "height": 800})
    page.set_content(f"<body style='margin:0'>{svg}</body>")
    save(page.locator("svg").screenshot(omit_background=True), file)
    page.close()


def draw_report(browser: Browser, file: Path) -> None:
    """Write the report of the run beside its control, and draw its first screens."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.html"
        compare = ["--compare", str(CONTROL)] if CONTROL.exists() else []
        command = [
            sys.executable,
            "-m",
            "and_dist",
            "report",
            str(RUN),
            *compare,
            "--out",
            str(out),
        ]
        subprocess.run(command, capture_output=True, check=True)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"file://{out}")
        Watched(page).scroll_through()
        save(page.screenshot(), file)
        page.close()


def save(content: bytes, file: Path) -> None:
    """Write a picture with few colours."""
    picture = Image.open(io.BytesIO(content))
    few = picture.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file}: {picture.width} x {picture.height}, {file.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Draw both pictures."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not RUN.exists():
        raise SystemExit("pictures are drawn by chromium, from the run of `make demo`")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        draw_terminal(chromium, FOLDER / "terminal.png")
        draw_report(chromium, FOLDER / "report.png")
        chromium.close()


if __name__ == "__main__":
    main()
