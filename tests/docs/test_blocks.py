"""Try every fenced block of the README and the docs, so that they stay true."""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import and_dist
from tests.docs.fences import FENCE, Block, all_blocks, blocks_of, pages
from tests.docs.parsers import check_command

BASH, PYTHON, YAML = map(all_blocks, ("bash", "python", "yaml"))
HOWS = {
    "bash": ("", "slow", "site"),
    "python": ("",),
    "yaml": ("",),
    "text": ("",),
    "bibtex": ("",),
}
QUICK = [block for block in BASH if block.how == ""]
SECONDS, SLOW_SECONDS = 300, 3600


def named(blocks: list[Block]) -> list[object]:
    """Return blocks as parameters, by page and line."""
    return [pytest.param(block, id=block.name) for block in blocks]


def is_readme(block: Block) -> bool:
    """Return whether a block stands in the README, whose commands run in CI."""
    return block.page == Path("README.md")


@pytest.mark.parametrize("page", pages(), ids=str)
def test_every_block_says_how_it_is_tried(page: Path) -> None:
    for block in blocks_of(page):
        assert block.how in HOWS.get(block.language, ()), f"{block.name}: {block.info}"
    # An indented block would be a block that nobody tries.
    assert "\n    .venv/bin/" not in FENCE.sub("", page.read_text())


@pytest.mark.parametrize("block", named(BASH))
def test_programs_take_the_options_of_every_command(block: Block) -> None:
    assert block.commands()
    for command in block.commands():
        check_command(command)


@pytest.mark.parametrize("block", named(YAML))
def test_yaml_is_a_mapping(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.body), dict)


@pytest.mark.parametrize("block", named(PYTHON))
@pytest.mark.thorough
def test_python_runs_as_printed(
    block: Block, sandbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sandbox)
    import torch

    names = {"and_dist": and_dist, "torch": torch, "__name__": "__main__"}
    if ">>>" not in block.body:
        exec(compile(block.body, block.name, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.body, names, block.name, None, block.line)
    runner, said = doctest.DocTestRunner(), list[str]()
    runner.run(test, out=said.append)
    assert test.examples
    assert runner.failures == 0, "".join(said)


@pytest.mark.whole_run
@pytest.mark.parametrize("block", named([b for b in QUICK if is_readme(b)]))
@pytest.mark.thorough
def test_commands_of_the_readme_run(block: Block, sandbox: Path) -> None:
    run(block, sandbox, SECONDS)


@pytest.mark.nightly
@pytest.mark.whole_run
@pytest.mark.parametrize("block", named([b for b in QUICK if not is_readme(b)]))
@pytest.mark.thorough
def test_commands_of_the_docs_run(block: Block, sandbox: Path) -> None:
    run(block, sandbox, SECONDS)


@pytest.mark.nightly
@pytest.mark.whole_run
@pytest.mark.parametrize("block", named([b for b in BASH if b.how == "slow"]))
@pytest.mark.thorough
def test_slow_commands_run(block: Block, sandbox: Path) -> None:
    if "make demo" in block.commands():
        shutil.rmtree(
            sandbox / "runs/demo"
        )  # a short one, in whose folder the demo would not train
    run(block, sandbox, SLOW_SECONDS)


def run(block: Block, sandbox: Path, seconds: float) -> None:
    """Run the commands of a block in the sandbox; all of them have to succeed."""
    script = "set -e\n" + "\n".join(block.commands())
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=sandbox,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
