"""See which types of numbers a run chooses on a pretend GPU, and what its 16-bit copy is worth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from and_dist.config import number_types
from and_dist.config.load import load_config, load_run_config
from and_dist.config.number_types import Processor, auto_precision, auto_products
from and_dist.config.schema import BankConfig, EncoderConfig
from and_dist.distributed.world import _let_memory_grow, open_world
from and_dist.method.memory_bank import MemoryBank
from and_dist.models.encoders import build_encoder, to_device
from and_dist.planning.gpus import GPUS
from and_dist.planning.memory import footprint_of
from and_dist.planning.workload import Job, Size
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import SHORT, config_for, train_on
from tests.pretend.tensors import CUDA
from tests.ranks.runs import assert_equal_to_the_bit, losses_of, train_until

H100 = Processor(is_gpu=True, multiplies_16_bits=True, memory_bytes=80e9)
IMAGENET = 1_281_167
AUTO = ("encoder.precision=auto", "bank.products=auto")


@pytest.fixture
def _few_rows_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round the few rows of the debug run too."""
    monkeypatch.setattr(number_types, "ROWS_WORTH_ROUNDING", 1)


def choose(
    num_rows: int = IMAGENET, temperature: float = 0.07, on: Processor = H100, **bank: Any
) -> str:
    """Return the products of a lone rank with rows of 128 features."""
    return auto_products(BankConfig(**bank), (num_rows, 128), num_rows, temperature, on)


def test_a_gpu_multiplies_many_rows_in_float16() -> None:
    assert choose() == "float16"
    assert choose(99_999) == "stored"
    assert choose(dtype="bfloat16") == "stored"
    assert choose(on=H100._replace(multiplies_16_bits=False)) == "stored"
    assert choose(on=Processor(False, True, 0)) == "bfloat16"


def test_float16_is_not_taken_where_it_would_lose_far_rows() -> None:
    assert choose(temperature=0.0699) == "stored"


def test_a_copy_takes_a_tenth_of_the_memory_at_most() -> None:
    assert choose(31_250_000) == "float16"  # 8 GB
    assert choose(31_250_001) == "stored"


def test_encoders_train_in_bfloat16_on_a_gpu_that_has_it() -> None:
    assert auto_precision(H100) == "bfloat16"
    assert auto_precision(H100._replace(multiplies_16_bits=False)) == "float32"
    assert auto_precision(Processor(False, True, 0)) == "float32"


def test_the_copy_is_always_the_rounded_rows() -> None:
    random = torch.Generator().manual_seed(0)
    rows_SD = torch.randn(50, 8, generator=random)
    with pretend_gpu():
        bank = MemoryBank(rows_SD.to(CUDA), 100, 400, 0.5, True, torch.float16)
        for _ in range(5):
            rows_G = torch.randint(80, 180, (16,), generator=random).to(CUDA)
            bank.update(rows_G, torch.randn(16, 8, generator=random).to(CUDA))
            assert bank.multiplied_SD.dtype == torch.float16
            assert torch.equal(bank.multiplied_SD, bank.features_SD.to(torch.float16))
        bank.features_SD.mul_(0.3)
        bank.round_again()
        assert torch.equal(bank.multiplied_SD, bank.features_SD.to(torch.float16))
        same = MemoryBank(rows_SD.to(CUDA), 0, 50, 0.5, True, torch.float32)
        assert same.multiplied_SD is same.features_SD
    on_cpu = MemoryBank(rows_SD, 0, 50, 0.5, True, torch.float16)
    assert on_cpu.multiplied_SD is rows_SD


@pytest.mark.usefixtures("_few_rows_are_worth_it")
def test_a_run_chooses_once_and_says_so(tmp_path: Path) -> None:
    """Its products in float16 lose what float32 loses, within 3e-3; bfloat16 features are apart."""
    run = train_on("cuda", tmp_path, *SHORT, "bank.init=features")
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["bank"]["products"] == "float16"
    assert written["encoder"]["precision"] == "float32"
    stored = train_on("cuda", tmp_path / "s", *SHORT, "bank.init=features", "bank.products=stored")
    assert 0 < (losses_of(run) - losses_of(stored)).abs().max() < 3e-3
    mixed = train_on("cuda", tmp_path / "m", *SHORT, *AUTO)
    assert load_run_config(mixed).encoder.precision == "bfloat16"
    (start,) = json.loads((mixed / "environment.json").read_text())
    assert start["convolutions"] == "bfloat16"


@pytest.mark.usefixtures("_few_rows_are_worth_it")
def test_an_interrupted_run_goes_on_with_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is not in a checkpoint: it is made again, and every loss is the same."""
    whole = train_on("cuda", tmp_path / "whole", *SHORT, *AUTO)
    chosen = ("bank.products=float16", "encoder.precision=bfloat16")
    begun = config_for("cuda", tmp_path / "resumed", *SHORT, *chosen)
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        train_until(world, begun, epochs=1)
    monkeypatch.setattr(number_types, "auto_products", lambda *_: "stored")
    resumed = train_on("cuda", tmp_path / "resumed", *SHORT, *AUTO)
    assert load_run_config(resumed).bank.products == "float16"
    assert_equal_to_the_bit(resumed, whole)


@pytest.mark.usefixtures("_few_rows_are_worth_it")
@pytest.mark.parametrize("written", ["auto", None])
def test_a_gpu_run_of_an_earlier_revision_multiplies_on_in_float32(
    tmp_path: Path, written: str | None
) -> None:
    """It wrote `auto`, or no such key, which was float32 on a GPU; its shipped config says more."""
    earlier = config_for("cuda", tmp_path, *SHORT, "bank.products=stored")
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        train_until(world, earlier, epochs=1)
    file = earlier.folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    del config["encoder"]["precision"], config["bank"]["products"]
    if written is not None:
        config["bank"]["products"] = written
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    run = load_run_config(train_on("cuda", tmp_path, *SHORT, *AUTO))
    assert (run.bank.products, run.encoder.precision) == ("stored", "float32")


def test_a_plan_knows_what_a_run_would_choose() -> None:
    config = load_config([], [*AUTO, "encoder.name=alexnet", "objective.temperature=0.07"])
    job = Job(config, IMAGENET, Size(1, 1), GPUS["h100"])
    assert (job.products, job.precision) == ("float16", "bfloat16")
    copy = footprint_of(job).bytes_of("shard in 16 bits, for its products")
    assert copy == 2 * 128 * IMAGENET
    old = Job(config, IMAGENET, Size(1, 1), GPUS["v100"])
    assert (old.products, old.precision) == ("stored", "float32")
    assert footprint_of(old).bytes_of("shard in 16 bits, for its products") == 0


@pytest.mark.parametrize(
    ("is_last", "layout"), [(True, torch.channels_last), (False, torch.contiguous_format)]
)
def test_a_gpu_has_kernels_laid_out_as_activations_are(
    is_last: bool, layout: torch.memory_format
) -> None:
    with pretend_gpu():
        encoder = build_encoder(EncoderConfig(name="small", channels_last=is_last), 0)
        kernels = [w for w in to_device(encoder, CUDA).parameters() if w.dim() == 4]
    assert len(kernels) == 4
    assert all(weight.is_contiguous(memory_format=layout) for weight in kernels)


@pytest.mark.parametrize("given", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_of_a_gpu_grows_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {given: "backend:cudaMallocAsync"} if given else {})
    _let_memory_grow()
    grown = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert os.environ == ({given: "backend:cudaMallocAsync"} if given else grown)
