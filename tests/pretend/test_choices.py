"""See what a run chooses for `auto` on a pretend GPU, and that it keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml

from and_dist.config.discovery_memory import auto_memory_mb, held_bytes
from and_dist.config.load import load_config, load_run_config
from and_dist.config.schema import Config
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import open_world
from and_dist.method import entropy
from and_dist.method.discovery import Scale, check_discovery, choose_memory_mb, least_memory_bytes
from and_dist.method.memory_bank import MemoryBank
from and_dist.runs.folder import check_run_folder
from and_dist.training.session import run_training
from tests.loading import world_of
from tests.pretend.device import pretend_gpu
from tests.pretend.runs import SHORT, config_for, train_on
from tests.pretend.tensors import CUDA
from tests.ranks.runs import assert_equal_to_the_bit, train_until

IMAGENET = 1_281_167
ROWS = Scale(IMAGENET, 512)
CHOSEN = 7999
"""The megabytes that a debug run chooses on the pretend GPU, of which 80 GB are free."""


def config_of(run: Path) -> Config:
    """Return the resolved config of a run."""
    return load_run_config(run)


def test_a_gpu_gives_discovery_a_share_of_what_is_free() -> None:
    with pretend_gpu():
        on_gpu = replace(world_of(), device=CUDA)
        assert choose_memory_mb(on_gpu, ROWS, 1, "Flat") == 7925  # 748 MB of 80 GB are held
        assert choose_memory_mb(on_gpu, Scale(10_000, 512), 1, "Flat") == CHOSEN
    assert choose_memory_mb(world_of(), ROWS, 1, "Flat") == 200
    assert [auto_memory_mb(free, 0, 1) for free in (10e9, 1e9, 300e9)] == [1000, 200, 8000]
    assert auto_memory_mb(80e9, held_bytes(0, 10**9, 1), 0) == 800


def test_memory_of_auto_is_never_refused() -> None:
    """A fused search keeps 80 bytes for each row of the shard, twice."""
    needed = least_memory_bytes(40_000_000, 1, 1, "fused")
    assert needed == 40_000_000 * 80
    with pytest.raises(ValueError, match="is too little"):
        check_discovery(40_000_000, 128, 1, 1, "fused", 200_000_000)
    check_discovery(40_000_000, 128, 1, 1, "fused", None)
    memory_mb = choose_memory_mb(world_of(), Scale(40_000_000, 512), 1, "fused")
    check_discovery(40_000_000, 128, 1, 1, "fused", 1_000_000 * memory_mb)


def test_a_scan_of_imagenet_on_a_gpu_takes_a_few_thousand_tiles() -> None:
    """It took 392,502 tiles of about 18 launches with 200 MB, in blocks of 2,048 rows."""
    bank = MemoryBank(torch.empty(2, 128), 0, IMAGENET, 0.5)
    with pretend_gpu():
        bank.features_SD = bank.features_SD.to(CUDA)
        memory_mb = choose_memory_mb(replace(world_of(), device=CUDA), ROWS, 1, "fused")
        size = entropy._block_size(bank, 1, 2, 1_000_000 * memory_mb)
    num_blocks = -(-IMAGENET // size)
    assert size == 16_384
    assert num_blocks * (num_blocks + 1) == 6_320


def test_a_run_writes_what_it_chose_and_keeps_it(tmp_path: Path) -> None:
    whole = train_on("cuda", tmp_path / "whole", *SHORT)
    assert yaml.safe_load((whole / "config.yaml").read_text())["discovery"]["memory_mb"] == CHOSEN
    assert config_of(whole).bank.products == "stored"
    again = config_for("cuda", tmp_path / "whole", *SHORT)
    assert again.discovery.memory_mb == "auto"
    check_run_folder(again)
    little = {"mem_get_info": lambda *_: (12 * 10**9, 85 * 10**9)}
    with pretend_gpu(), patch.multiple(torch.cuda, **little), Watchdog() as watchdog:
        run_training(again, watchdog, "quiet")
    assert config_of(whole).discovery.memory_mb == CHOSEN


def test_a_run_of_an_earlier_revision_goes_on_with_its_200(tmp_path: Path) -> None:
    """It wrote the default of then, and the same command goes on to the same numbers."""
    whole = train_on("cuda", tmp_path / "whole", *SHORT, "discovery.memory_mb=200")
    earlier = config_for("cuda", tmp_path / "resumed", *SHORT, "discovery.memory_mb=200")
    with pretend_gpu(), open_world("cuda", threads=1) as world:
        train_until(world, earlier, epochs=1)
    resumed = train_on("cuda", tmp_path / "resumed", *SHORT)
    assert config_of(resumed).discovery.memory_mb == 200
    assert_equal_to_the_bit(resumed, whole)


def test_another_memory_than_the_chosen_one_is_refused(tmp_path: Path) -> None:
    train_on("cpu", tmp_path, *SHORT)
    other = config_for("cpu", tmp_path, *SHORT, "discovery.memory_mb=300")
    with pytest.raises(ValueError, match=r"discovery\.memory_mb: 200 -> 300"):
        check_run_folder(other)


@pytest.mark.parametrize("given", ["63", "some", "-1"])
def test_what_is_no_memory_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"discovery\.memory_mb"):
        load_config([], [f"discovery.memory_mb={given}"])
