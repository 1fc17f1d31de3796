"""What only a GPU can show: the fused operators, and a whole run. `make test-gpu`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn import functional

from and_dist.config.schema import OBJECTIVES, DataConfig
from and_dist.data.augment import training_views
from and_dist.data.datasets import index_folder
from and_dist.data.hsv_jitter import HsvJitter
from and_dist.data.loader import TrainingLoader
from and_dist.data.order import Order
from and_dist.data.unreadable import BadImages
from and_dist.distributed.launch_env import LaunchEnv
from and_dist.distributed.watchdog import Watchdog
from and_dist.distributed.world import choose_device, open_world
from and_dist.evaluation.evaluate_run import Request, plan_evaluation, run_evaluation
from and_dist.method.discovery import discover
from and_dist.method.faiss_search import (
    EXACT,
    MOST_ON_GPU,
    ExactSearch,
    load_faiss,
    nearest_by_torch,
)
from and_dist.method.memory_bank import MemoryBank
from and_dist.method.partition import log_partition
from and_dist.models.arithmetic import training_products
from and_dist.planning.gpus import GPUS
from and_dist.planning.memory import footprint_of
from and_dist.planning.workload import Job, Size
from and_dist.runs.console import Display
from and_dist.training import session
from and_dist.training.session import run_training
from benchmarks.device.world_of_one import (
    MOST_APART,
    check_collectives,
    compare_run,
    without_short_cuts,
)
from tests.loading import CPU, images_by_row, world_of
from tests.pictures import noise, save_pictures
from tests.pretend.full_size import build_batch, build_trainer, full_size_config, take_a_step
from tests.pretend.test_full_size_memory import planned_step
from tests.ranks.runs import (
    InterruptedTrainer,
    assert_equal_to_the_bit,
    debug_config,
    losses_of,
)
from tests.recipes import COMPARED, RECIPES
from tests.suites import LACKS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason=LACKS["a GPU"])
AS_ON_A_CPU = "encoder.tf32=false"
"""Keeps cuDNN from rounding float32 to TF32, by which k-means tips over into other clusters."""


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-10),
        (torch.float32, 1e-3),
        (torch.float16, 5e-3),
        (torch.bfloat16, 3e-2),
    ],
)
@pytest.mark.parametrize(
    ("num_queries", "num_rows", "dim"),
    [
        (1, 1, 128),
        (256, 200_001, 128),
        (100, 4097, 128),
        (48, 5003, 100),
        (48, 5003, 200),
        (48, 5003, 512),
    ],
)
def test_fused_equals_dense(
    dtype: torch.dtype, tolerance: float, num_queries: int, num_rows: int, dim: int
) -> None:
    random = torch.Generator("cuda").manual_seed(0)

    def unit(count: int) -> torch.Tensor:
        values = torch.randn(count, dim, generator=random, device="cuda", dtype=torch.float64)
        return functional.normalize(values, dim=1).to(dtype)

    queries_GD, rows_SD = unit(num_queries), unit(num_rows)
    ours = log_partition(queries_GD, rows_SD, 0.1)
    logits_GS = queries_GD.double() @ rows_SD.double().T / 0.1
    assert (ours.log_z - logits_GS.logsumexp(1)).abs().max() < tolerance
    mean_GD = logits_GS.softmax(1) @ rows_SD.double()
    assert (ours.mean - mean_GD).abs().max() < tolerance


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason=LACKS["one GPU"])
def test_a_task_of_srun_that_is_shown_one_gpu_takes_it() -> None:
    second = LaunchEnv(is_alone=False, rank=1, size=2, local_rank=1, local_size=2)
    assert choose_device("auto", replace(second, meeting="n1:17")) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="local rank 1 has no GPU"):
        choose_device("auto", second)


def loader_on(
    device: str, folder: Path, dtype: torch.dtype = torch.float32, hardware: float = 0.65
) -> TrainingLoader:
    index = index_folder(folder).index
    config = DataConfig(image_size=64, flip=True, hardware_decoder=hardware)
    world = replace(world_of(), device=torch.device(device, 0) if device == "cuda" else CPU)
    order, bad = Order(len(index), 16, 0), BadImages(index, "stop")
    return TrainingLoader(index, config, order, world, bad, dtype)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return save_pictures(folder, [(120 + 5 * n, 90 + 3 * n) for n in range(64)], quality=95)


@pytest.mark.parametrize("hardware", [0.0, 1.0])
def test_mixed_decoding_gives_the_images_of_the_cpu(photos: Path, hardware: float) -> None:
    """Same cuts and colours; decoders and resampling differ by a level or two of 255."""
    on_cpu = images_by_row(loader_on("cpu", photos).batches(0))
    on_gpu = images_by_row(loader_on("cuda", photos, hardware=hardware).batches(0))
    assert on_cpu.keys() == on_gpu.keys()
    apart = [255 * 0.226 * (on_gpu[row].cpu() - image).abs() for row, image in on_cpu.items()]
    means, most = [levels.mean().item() for levels in apart], max(map(torch.max, apart)).item()
    print(f"levels apart: {sum(means) / len(means):.3f} on average, at most {most:.1f}")
    assert max(means) < 1.5


def test_steps_of_colour_are_those_of_the_cpu() -> None:
    config = DataConfig(hue_model="hsv")
    sides = np.full(64, 40, np.int32)
    views = training_views(config, 0, 0, np.arange(64), sides, sides)
    images = torch.from_numpy(noise(0, (64, 3, 25, 25)))
    on_cpu = HsvJitter(config, CPU).apply(views, images)
    gpu = torch.device("cuda", 0)
    on_gpu = HsvJitter(config, gpu).apply(views, images.to(gpu))
    assert (on_gpu.cpu() - on_cpu).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_on_a_gpu_have_channels_last(photos: Path, dtype: torch.dtype) -> None:
    batch = next(iter(loader_on("cuda", photos, dtype).batches(0)))
    assert batch.images_BCHW.dtype == dtype
    assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_gpu_memory_is_steady_over_2000_batches(photos: Path) -> None:
    loader = loader_on("cuda", photos)
    free, batches = [], 0
    for epoch in range(500):
        batches += sum(1 for _ in loader.batches(epoch))
        free.append(torch.cuda.mem_get_info()[0])
    assert batches == 2000
    assert min(free[100:]) > free[99] - 2**24


def test_a_run_follows_the_cpu(tmp_path: Path) -> None:
    on_cpu = debug_config(tmp_path, "name=cpu", "run.device=cpu")
    on_gpu = debug_config(tmp_path, "name=gpu", "run.device=cuda", AS_ON_A_CPU)
    for config in (on_cpu, on_gpu):
        run_training(config, Watchdog())
    first_round = slice(0, 15)
    difference = losses_of(on_gpu.folder)[first_round] - losses_of(on_cpu.folder)[first_round]
    assert difference.abs().max() < 0.05


@pytest.mark.parametrize("name", RECIPES)
def test_another_recipe_follows_the_cpu(tmp_path: Path, name: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        settings = (AS_ON_A_CPU, "curriculum.rounds=1", *RECIPES[name])
        config = debug_config(tmp_path, f"name={device}", f"run.device={device}", *settings)
        run_training(config, Watchdog())
        found.append(losses_of(config.folder)[: COMPARED.get(name)])
    assert ((found[0] - found[1]) / found[0]).abs().max() < 2e-2


@pytest.mark.parametrize("search", ["Flat", "fused", "IVF64,Flat", "IVF64,SQfp16"])
def test_discovery_equals_that_of_a_cpu_and_gives_its_memory_back(search: str) -> None:
    random = torch.Generator().manual_seed(0)
    bank_ND = functional.normalize(torch.randn(20_011, 128, generator=random), dim=1)
    bank_ND[1000:1200] = bank_ND[7]
    with open_world("cpu") as world:
        exact = discover(MemoryBank(bank_ND, 0, len(bank_ND), 0.5), world, 2, 4, 3, 0.1)
    with open_world("cuda") as world:
        bank = MemoryBank(bank_ND.cuda(), 0, len(bank_ND), 0.5)
        discover(bank, world, 2, 4, 3, 0.1, search)  # loads what stays loaded
        torch.cuda.empty_cache()
        free_before, _ = torch.cuda.mem_get_info()
        found = discover(bank, world, 2, 4, 3, 0.1, search)
        torch.cuda.empty_cache()
        free_after, _ = torch.cuda.mem_get_info()
    assert free_before - free_after < 16_000_000
    torch.testing.assert_close(found.entropy_N.cpu(), exact.entropy_N, rtol=0, atol=1e-4)
    anchors_A = exact.anchors_A[torch.isin(exact.anchors_A, found.anchors_A.cpu())]
    assert len(anchors_A) > 0.999 * len(exact.anchors_A)
    same = exact.neighbours_NK[anchors_A] == found.neighbours_NK.cpu()[anchors_A]
    assert same.double().mean() >= (1.0 if search in EXACT else 0.9)


@pytest.mark.parametrize("method", [m for m in OBJECTIVES if m not in ("and", "random")])
def test_every_method_trains_and_is_evaluated(tmp_path: Path, method: str) -> None:
    """Its losses are those of the CPU; then kNN and linear classifiers of what it has learned."""
    found = []
    for device in ("cpu", "cuda"):
        config = debug_config(
            tmp_path,
            f"name={device}",
            f"run.device={device}",
            AS_ON_A_CPU,
            f"method={method}",
            "instance_nce.negatives=64",
            "deepcluster.clusters=12",
            "curriculum.rounds=1",
            "evaluation.linear.epochs=2",
            "evaluation.linear.milestones=[1]",
        )
        with Watchdog() as watchdog:
            run_training(config, watchdog)
            request = Request(with_knn=True, with_linear=True)
            planned = plan_evaluation(config.folder, None, [], request)
            with open_world(device) as world:
                run_evaluation(planned, world, Display(is_shown=False), watchdog)
        found.append(losses_of(config.folder))
    assert ((found[0] - found[1]) / found[0]).abs().max() < 2e-2
    assert (tmp_path / "cuda/evaluation/r01-e0003/linear.json").exists()


def test_a_world_of_one_sends_everything_by_nccl(tmp_path: Path) -> None:
    with without_short_cuts(), open_world("cuda") as world:
        check_collectives(world)
    assert compare_run("plain", "cuda", tmp_path) < MOST_APART


def test_a_deterministic_run_resumes_to_the_bit(tmp_path: Path) -> None:
    """Cut short after 5 of 15 epochs and resumed in this process, beside one that was not."""
    settings = ("run.device=cuda", "encoder.name=small", "encoder.deterministic=true")
    whole = debug_config(tmp_path / "whole", *settings)
    resumed = debug_config(tmp_path / "resumed", *settings)
    run_training(whole, Watchdog())
    with patch.object(session, "Trainer", InterruptedTrainer):
        InterruptedTrainer.die_at = 5
        with pytest.raises(InterruptedError):
            run_training(resumed, Watchdog())
    run_training(resumed, Watchdog())
    assert_equal_to_the_bit(resumed.folder, whole.folder)


def test_only_an_encoder_that_trains_rounds_to_tf32() -> None:
    """Features of a convolution in float32 equal those of the CPU closely; in TF32 they do not."""
    convolution = torch.nn.Conv2d(64, 64, 3)
    images_BCHW = torch.randn(8, 64, 16, 16)
    expected = convolution(images_BCHW)
    on_gpu, images_BCHW = convolution.cuda(), images_BCHW.cuda()

    def apart() -> float:
        return float((on_gpu(images_BCHW).cpu() - expected).abs().max())

    with open_world("cuda"):
        assert apart() < 1e-5
        with training_products(is_tf32=True):
            assert apart() > 1e-5
        with training_products(is_tf32=False):
            assert apart() < 1e-5


def test_faiss_has_the_limits_that_are_counted_on() -> None:
    rows_SD = functional.normalize(torch.randn(5000, 16, device="cuda"), dim=1)
    few, found = rows_SD[:3], nearest_by_torch(rows_SD[:3], rows_SD, 4000, 10**7)
    expected = (few @ rows_SD.T).topk(4000, dim=1).values
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    faiss, search = load_faiss(), ExactSearch(rows_SD, 10**8)
    assert search.candidates(few, MOST_ON_GPU).places_QC.shape == (3, MOST_ON_GPU)
    with pytest.raises(RuntimeError, match=str(MOST_ON_GPU)):
        faiss.knn_gpu(search._resources, few, rows_SD, MOST_ON_GPU + 1, device=0)


def test_the_plan_counts_what_a_step_takes(tmp_path: Path) -> None:
    """The most that torch's tensors take of a GPU in a step, within a tenth."""
    config = full_size_config("optim.batch_size=512", f"run.root={tmp_path}", "run.device=cuda")
    rows = 1_000_000
    with open_world("cuda") as world:
        before = torch.cuda.memory_allocated()
        trainer = build_trainer(config, rows, world)
        at_rest = torch.cuda.memory_allocated()
        batch = build_batch(trainer, 512)
        images = torch.cuda.memory_allocated() - at_rest
        batch.rows_B.copy_(torch.arange(512))
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            take_a_step(trainer, batch)
        taken = torch.cuda.max_memory_allocated() - before - images
    planned = planned_step(footprint_of(Job(config, rows, Size(1, 1), GPUS["h100"])))
    print(f"planned {planned / 1e6:,.0f} MB, taken {taken / 1e6:,.0f} MB")
    assert planned == pytest.approx(taken, rel=0.1)
