"""Show keys, resolved configs and differences (`and-dist config`), versions and help."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import and_dist
from and_dist.config.load import load_config
from and_dist.runs.folder import write_config
from launcher.cli import app as and_launch
from tests.conftest import Cli


def test_a_section_is_shown_with_bounds_and_meaning(cli: Cli) -> None:
    status, out, _ = cli("config", "objective")
    assert status == 0
    assert out.splitlines() == [
        "objective.temperature = 0.1",
        "    number >= 0.01 and <= 10",
        "    tau of Eq. 2: 0.1 in the published CIFAR code, 0.07 for ImageNet.",
    ]
    everything = cli("config")[1]
    assert out in everything
    assert everything.count("\n    ") > 120


def test_the_resolved_config_is_yaml_that_trains_the_same(cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli("config", "--config", "demo", "optim.lr=0.1")
    assert status == 0
    wanted = load_config(["demo"], ["optim.lr=0.1"])
    assert yaml.safe_load(out) == wanted.model_dump(mode="json")
    (tmp_path / "own.yaml").write_text(out)
    assert load_config([tmp_path / "own.yaml"]) == wanted


def test_the_difference_to_a_run_names_its_values(cli: Cli, tmp_path: Path) -> None:
    write_config(load_config(["demo"], ["optim.lr=0.5"]), tmp_path)
    status, out, _ = cli("config", "--config", "demo", "--diff", tmp_path)
    assert (status, out) == (0, "optim.lr: 0.06 -> 0.5\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("optm",), "there is no key or section 'optm'; did you mean optim?"),
        (("optim.lr=1",), "optim.lr=1 changes a config: name one with --config"),
        (("optim", "--config", "demo"), "optim and --config or --diff: give the one or the other"),
        (("--diff", "nowhere"), "nowhere is no run folder"),
    ],
)
def test_what_cannot_be_shown_is_an_error(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    status, _, error = cli("config", *arguments)
    assert status == 2
    assert said in error


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_both_programs_take_a_short_help_and_say_their_version(cli: Cli, option: str) -> None:
    assert "Usage: " in cli(option)[1]
    assert cli("--version")[:2] == (0, f"and-dist {and_dist.__version__}\n")
    run = CliRunner().invoke
    assert "Usage" in run(and_launch, [option]).stdout
    assert run(and_launch, ["--version"]).stdout == f"and-dist {and_dist.__version__}\n"
