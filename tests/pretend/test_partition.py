"""Compute partitions on the pretend GPU, whose attention operators refuse what CUDA's refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from and_dist.method import partition_kernels
from and_dist.method.partition import log_partition
from tests.pretend.device import pretend_gpu
from tests.pretend.tensors import CUDA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 100, 128, 200, 512])
def test_features_of_any_length_have_their_partition(
    monkeypatch: pytest.MonkeyPatch, dim: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(partition_kernels, "ROWS_PADDED_AT_ONCE", 300)
    random = torch.Generator().manual_seed(dim)
    rows_SD = functional.normalize(torch.randn(700, dim, generator=random), dim=1).to(dtype)
    queries_GD = rows_SD[:5]
    with pretend_gpu():
        found = log_partition(queries_GD.to(CUDA), rows_SD.to(CUDA), 0.1)
        log_z_G, mean_GD = found.log_z.cpu(), found.mean.cpu()
    logits_GS = queries_GD.double() @ rows_SD.double().T / 0.1
    expected_GD = logits_GS.softmax(1) @ rows_SD.double()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(log_z_G.double(), logits_GS.logsumexp(1), rtol=0, atol=tolerance)
    torch.testing.assert_close(mean_GD.double(), expected_GD, rtol=0, atol=tolerance)
