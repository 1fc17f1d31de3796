"""What only a GPU can show: the fused operators, and a whole run. `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from and_dist.cli import run_training
from and_dist.partition import log_partition
from tests.ranks.runs import debug_config, losses_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-10),
        (torch.float32, 1e-3),
        (torch.float16, 5e-3),
        (torch.bfloat16, 3e-2),
    ],
)
@pytest.mark.parametrize(("num_queries", "num_rows"), [(1, 1), (256, 200_001), (100, 4097)])
def test_fused_equals_dense(
    dtype: torch.dtype, tolerance: float, num_queries: int, num_rows: int
) -> None:
    random = torch.Generator("cuda").manual_seed(0)

    def unit(count: int) -> torch.Tensor:
        values = torch.randn(count, 128, generator=random, device="cuda", dtype=torch.float64)
        return functional.normalize(values, dim=1).to(dtype)

    queries_GD, rows_SD = unit(num_queries), unit(num_rows)
    ours = log_partition(queries_GD, rows_SD, 0.1)
    logits_GS = queries_GD.double() @ rows_SD.double().T / 0.1
    assert (ours.log_z - logits_GS.logsumexp(1)).abs().max() < tolerance
    mean_GD = logits_GS.softmax(1) @ rows_SD.double()
    assert (ours.mean - mean_GD).abs().max() < tolerance


def test_a_run_follows_the_cpu(tmp_path: Path) -> None:
    on_cpu = debug_config(tmp_path, "name=cpu", "run.device=cpu")
    on_gpu = debug_config(tmp_path, "name=gpu", "run.device=cuda")
    for config in (on_cpu, on_gpu):
        run_training(config)
    first_round = slice(0, 15)
    difference = losses_of(on_gpu.folder)[first_round] - losses_of(on_cpu.folder)[first_round]
    assert difference.abs().max() < 0.05
