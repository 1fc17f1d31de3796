"""Choose the form of the partition on the pretend GPU, by timings that are made up here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from and_dist.config.load import load_run_config
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import World, open_world
from and_dist.method import partition_choice, partition_gpu
from and_dist.method.partition_choice import Choice, Shapes, choose_form
from and_dist.method.partition_gpu import FLASH4_PACKAGE
from and_dist.method.partition_merge import Partition
from and_dist.training.session import run_training
from tests.loading import world_of
from tests.pretend import stand_ins
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import SHORT, config_for, train_on
from tests.pretend.tensors import CUDA
from tests.ranks.runs import losses_of, train_until

SHAPES = Shapes(256, 5000, 128, torch.bfloat16, torch.bfloat16)
MILLISECONDS = {"attention": 3.0, "cudnn": 1.0, "triton": 2.0}
WITH_FLASH4 = {"attention": 3.0, "cudnn": 1.0, "flash4": 0.5, "triton": 2.0}
NARROW = ("bank.dtype=bfloat16",)


@pytest.fixture
def world() -> World:
    return replace(world_of(), device=CUDA)


@pytest.fixture(autouse=True)
def _timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a form take MILLISECONDS, once it was computed."""

    def take(compute: partial[Partition]) -> float:
        compute()
        return WITH_FLASH4[compute.args[-1]]

    monkeypatch.setattr(partition_choice, "_milliseconds", take)


def test_the_fastest_form_is_chosen(world: World) -> None:
    with pretend_gpu() as gpu:
        assert choose_form(SHAPES, 0.1, world) == Choice("cudnn", MILLISECONDS)
    assert gpu.launches["_scaled_dot_product_flash_attention"] == 2  # checked and timed
    assert gpu.launches["partition_by_triton"] == 2


@pytest.mark.parametrize("products", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_what_the_type_rounds_is_no_fault_of_a_form(
    world: World, products: torch.dtype, temperature: float
) -> None:
    """Features of 16 numbers have large cosines: bfloat16 moves log Z by 0.4 at tau 0.01."""
    shapes = SHAPES._replace(dim=16, stored=torch.float32, products=products)
    with pretend_gpu():
        assert choose_form(shapes, temperature, world).form == "cudnn"


@pytest.fixture
def _flash4(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that flash-attn-4 is installed."""
    find = metadata.distribution
    known = {FLASH4_PACKAGE: object()}
    monkeypatch.setattr(metadata, "distribution", lambda name: known.get(name) or find(name))
    cute = SimpleNamespace(flash_attn_func=stand_ins.flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(cute=cute))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    partition_gpu.forms_for.cache_clear()
    yield
    partition_gpu.forms_for.cache_clear()


@pytest.mark.usefixtures("_flash4")
@pytest.mark.parametrize("dim", [16, 100, 128])
def test_flash_attention_4_is_a_form_where_it_is_installed(world: World, dim: int) -> None:
    with pretend_gpu():
        choice = choose_form(SHAPES._replace(dim=dim), 0.1, world)
    assert choice.form == "flash4"
    assert choice.milliseconds.items() <= WITH_FLASH4.items()


@pytest.mark.usefixtures("_flash4")
def test_flash_attention_4_takes_128_features_at_most(world: World) -> None:
    with pretend_gpu():
        assert "flash4" not in choose_form(SHAPES._replace(dim=136), 0.1, world).milliseconds


def test_flash_attention_4_that_is_not_installed_is_refused() -> None:
    with pytest.raises(ValueError, match="take attention or cudnn or triton"):
        partition_gpu.check_form("flash4", torch.float16, 128)


def test_a_form_that_does_not_run_or_is_wrong_is_not_chosen(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute = partition_gpu.compute

    def broken(queries_GD: Tensor, rows_SD: Tensor, temperature: float, form: str) -> Partition:
        if form == "cudnn":
            raise RuntimeError("No available kernel")
        found = compute(queries_GD, rows_SD, temperature, form)
        return found if form == "attention" else found._replace(log_z=found.log_z + 0.02)

    monkeypatch.setattr(partition_gpu, "compute", broken)
    with pretend_gpu():
        assert choose_form(SHAPES, 0.1, world) == Choice("attention", {"attention": 3.0})
    refused, wrong = (record.getMessage() for record in caplog.records)
    assert refused == (
        "bank.form=cudnn does not run on this GPU and is left out: No available kernel"
    )
    assert wrong.startswith("bank.form=triton is 0.02")


def test_where_there_is_one_form_nothing_is_timed(world: World) -> None:
    wide = SHAPES._replace(stored=torch.float32, products=torch.float32)
    with pretend_gpu() as gpu:
        assert choose_form(wide, 0.1, world) == Choice("attention", {})
    assert not gpu.launches
    assert choose_form(SHAPES, 0.1, world_of()) == Choice("attention", {})


def test_a_run_keeps_the_form_it_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_on("cuda", tmp_path, *SHORT, *NARROW)
    assert load_run_config(run).bank.form == "cudnn"
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["partition_ms"] == MILLISECONDS
    monkeypatch.setitem(MILLISECONDS, "triton", 0.1)
    again = config_for("cuda", tmp_path, *SHORT, *NARROW)
    assert again.bank.form == "auto"
    with pretend_gpu() as gpu, Watchdog() as watchdog:
        run_training(again, watchdog, "quiet")
    assert load_run_config(run).bank.form == "cudnn"
    assert not gpu.launches["partition_by_triton"]


def test_a_run_of_before_there_were_forms_keeps_attention(tmp_path: Path) -> None:
    earlier = config_for("cuda", tmp_path, *SHORT, *NARROW, "bank.form=attention")
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        train_until(world, earlier, epochs=1)
    file = earlier.folder / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "form: attention" not in line))
    run = train_on("cuda", tmp_path, *SHORT, *NARROW)
    assert load_run_config(run).bank.form == "attention"


@pytest.mark.parametrize("form", ["attention", "cudnn", "triton"])
def test_a_run_in_every_form_loses_the_same(tmp_path: Path, form: str) -> None:
    losses = losses_of(train_on("cuda", tmp_path, *SHORT, *NARROW, f"bank.form={form}"))
    if form != "attention":
        other = train_on("cuda", tmp_path / "a", *SHORT, *NARROW, "bank.form=attention")
        assert (losses - losses_of(other)).abs().max() < 1e-2


def test_a_form_that_does_not_take_the_rows_is_refused(tmp_path: Path) -> None:
    message = "bank.form=triton takes no rows of 128 features in float32; take attention"
    with pytest.raises(ValueError, match=message):
        train_on("cuda", tmp_path, *SHORT, "bank.form=triton")
    assert not (tmp_path / "cuda").exists()
