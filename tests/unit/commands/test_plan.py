"""`and-dist plan`: what it says, what it advises, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.unit.planning.slide_rule import device


def test_a_billion_rows_in_json(cli: Cli) -> None:
    status, out, error = cli(
        "plan",
        "-c",
        "configs/paper/imagenet-alexnet.yaml",
        "--nodes",
        32,
        "--gpus",
        8,
        "--gpu",
        "h100",
        "--rows",
        "1e9",
        "--json",
    )
    assert (status, error) == (0, "")
    plan = json.loads(out)
    assert plan["ranks"] == 256
    assert plan["table_bytes_of_every_rank"] == 24e9
    assert plan["stops_first"] == "neighbours, entropies, anchors"
    device = plan["memory"]["device"]
    assert device["fullest"] == "discovery"
    assert device["phases"]["discovery"] == pytest.approx(sum(device["parts"].values()))
    assert plan["bound_by"] == "gradients"
    changes = {advice["change"] for advice in plan["advice"]}
    larger = "optim.batch_size=8192 optim.lr=0.96 (lr by the linear rule) or 8 ranks"
    assert {"optim.compression=bfloat16", f"{larger}, for 32 images each"} <= changes
    assert plan["run_seconds"] > plan["epoch_seconds"] > plan["step_seconds"]["in all"]


def test_tables_say_where_the_neighbours_lie_and_what_bounds(cli: Cli) -> None:
    status, out, _ = cli("plan", "-c", "configs/debug.yaml", "--workers", 2)
    said = " ".join(out.split())
    assert status == 0
    for words in (
        "200 rows, tiny, 1 node(s) of 2 CPU rank(s)",
        "shard of the bank",
        "sum of gradients",
        "bound by:",
        "lies whole on every rank",
        "images/s",
        "rank-hours",
        "fits:",
    ):
        assert words in said


SIXTEEN_BIT = ("encoder.precision=bfloat16", "bank.dtype=bfloat16")


def advice_for(cli: Cli, *arguments: object) -> dict[str, str]:
    status, out, error = cli("plan", *arguments, "--json")
    assert status == 0, error
    return {advice["change"]: advice["effect"] for advice in json.loads(out)["advice"]}


IMAGENET = ("-c", "configs/paper/imagenet-alexnet.yaml", "--gpus", 8, "--gpu")


@pytest.mark.parametrize(
    ("arguments", "change", "effect"),
    [
        ([*IMAGENET, "a100", "--rows", "4e8"], "bank.dtype=bfloat16", "a rank in place of"),
        ([*IMAGENET, "a100", "--rows", "6e8"], "--nodes 2", "which fits"),
        (
            [*IMAGENET, "a100", "--rows", "1e9", "discovery.memory_mb=200"],
            "discovery.memory_mb=4000",
            "training refuses",
        ),
        ([*IMAGENET, "h100", "--rows", "1e6"], "optim.batch_size=1024", "in all in place of"),
        (
            [*IMAGENET, "h100", "--rows", "1e6", "optim.batch_size=64"],
            "optim.batch_size=256 optim.lr=0.12 (lr by the linear rule) or 2 ranks, for 32 images "
            "each",
            "has 8 images a step for each of 8 ranks, too few to keep them busy; ",
        ),
        (
            [*IMAGENET, "h100", "--rows", "1e6", *SIXTEEN_BIT, "optim.batch_size=4096"],
            "and-dist prepare --raw 256, and data.train=OUT/train",
            "an epoch",
        ),
        (
            [*IMAGENET, "a100", "--nodes", 8, "--rows", "1281167", "encoder.name=alexnet"],
            "optim.compression=bfloat16",
            "in all in place of",
        ),
        (
            [*IMAGENET, "a100", "--rows", "3e7", "curriculum.epochs=1", "optim.batch_size=4096"],
            "discovery.search=fused",
            "a discovery",
        ),
    ],
)
def test_advice_comes_with_what_it_brings(
    cli: Cli, arguments: list[object], change: str, effect: str
) -> None:
    advice = advice_for(cli, *arguments)
    assert change in advice
    assert effect in advice[change]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-c", "configs/nowhere.yaml"], "cannot read config configs/nowhere.yaml"),
        (["-c", "configs/debug.yaml", "encoder.name=vgg"], "'vgg' is not one of: tiny, small"),
        (["-c", "configs/debug.yaml", "--workers", 300], "has 200 images for 300 ranks"),
        (["-c", "configs/debug.yaml", "--workers", 4, "--rows", 3], "3 rows for 4 ranks"),
        (["-c", "configs/debug.yaml", "--rows", "many"], "right are 1281167 or 1e9"),
        (["-c", "configs/debug.yaml", "data.train=nowhere"], "say how many images it has with"),
        (["-c", "configs/debug.yaml", "--gpus", 1, "--gpu", "b200"], "is not one of: cpu, v100"),
        (["-c", "configs/debug.yaml", "--gpus", 1], "say which with --gpu, one of: v100"),
        (["-c", "configs/debug.yaml", "--gpu", "a100"], "say with --gpus how many"),
        (["-c", "configs/debug.yaml", "--gpu", "none.json"], "none.json cannot be read"),
        (
            ["-c", "configs/debug.yaml", "--gpu", "benchmarks/results/discovery.json"],
            "holds no measured hardware; right is a file that `python -m benchmarks.hardware",
        ),
        (["-c", "configs/debug.yaml", "--gpu-memory", -1], "is no size; right is one in GB"),
        (
            ["-c", "configs/debug.yaml", "--workers", 4, "--gpus", 2, "--gpu", "a100"],
            "a rank needs a GPU of its own",
        ),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(
    cli: Cli, arguments: list[object], sentence: str
) -> None:
    status, out, error = cli("plan", *arguments)
    assert status == 2
    assert sentence in error
    assert out == ""
    assert error.count("\n") == 1


def test_a_measured_file_of_another_format_is_a_sentence(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "mine.json"
    plain = device().model_dump(mode="json")
    for broken in ({"cores": "two"}, {"colour": "red"}, {"loader": {"pixels": {"points": []}}}):
        file.write_text(json.dumps({"hardware": plain | broken}))
        status, _, error = cli("plan", "-c", "configs/debug.yaml", "--gpu", file)
        assert status == 2
        assert f"{file} is of another format" in error
        assert "`python -m benchmarks.hardware --json FILE` wrote" in error
    file.write_text(json.dumps({"hardware": plain}))
    status, out, _ = cli("plan", "-c", "configs/debug.yaml", "--gpu", file, "--json")
    assert status == 0
    assert json.loads(out)["hardware"] == "slide rule"
