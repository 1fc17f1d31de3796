"""Compute partitions on the pretend GPU, whose attention operators refuse what CUDA's refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from and_dist.method import partition_gpu
from and_dist.method.partition import log_partition
from tests.pretend.device import pretend_gpu
from tests.pretend.tensors import CUDA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 100, 128, 200, 512])
@pytest.mark.parametrize("form", ["attention", "cudnn", "triton"])
def test_every_form_finds_the_partition_of_the_features_it_takes(
    monkeypatch: pytest.MonkeyPatch, dim: int, dtype: torch.dtype, form: str
) -> None:
    monkeypatch.setattr(partition_gpu, "ROWS_PADDED_AT_ONCE", 300)
    if form not in partition_gpu.forms_for(dtype, dim):
        with pretend_gpu():
            rows_SD = torch.ones(5, dim, device=CUDA, dtype=dtype)
            with pytest.raises(ValueError, match=f"bank.form={form} takes no rows of {dim} fea"):
                log_partition(rows_SD, rows_SD, 0.1, form=form)
        return
    random = torch.Generator().manual_seed(dim)
    rows_SD = functional.normalize(torch.randn(700, dim, generator=random), dim=1).to(dtype)
    queries_GD = rows_SD[:5]
    with pretend_gpu():
        found = log_partition(queries_GD.to(CUDA), rows_SD.to(CUDA), 0.1, form=form)
        log_z_G, mean_GD = found.log_z.cpu(), found.mean.cpu()
    logits_GS = queries_GD.double() @ rows_SD.double().T / 0.1
    expected_GD = logits_GS.softmax(1) @ rows_SD.double()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(log_z_G.double(), logits_GS.logsumexp(1), rtol=0, atol=tolerance)
    torch.testing.assert_close(mean_GD.double(), expected_GD, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("num_queries", "num_heads"), [(1, 264), (128, 264), (256, 132), (4096, 8), (100_000, 1)]
)
def test_heads_fill_a_gpu_twice_and_no_more(num_queries: int, num_heads: int) -> None:
    """132 multiprocessors take blocks of 128 queries; one block more would be another wave."""
    with pretend_gpu():
        found = partition_gpu._num_heads(num_queries, 1_281_167, CUDA)
        assert found == num_heads
        assert partition_gpu._num_heads(num_queries, 4095, CUDA) == 1
    blocks = -(-num_queries // 128) * found
    assert blocks <= 2 * 132 or found == 1


@pytest.mark.parametrize("num_rows", [1, 3, 4095, 8192, 8195, 12_290])
def test_rows_that_do_not_fill_the_heads_count(num_rows: int) -> None:
    """Two and three heads of 4,096 rows have none, two or three rows left."""
    random = torch.Generator().manual_seed(num_rows)
    rows_SD = functional.normalize(torch.randn(num_rows, 16, generator=random), dim=1)
    queries_GD = rows_SD[:3] * 1.0
    with pretend_gpu() as gpu:
        found = log_partition(queries_GD.to(CUDA), rows_SD.to(CUDA), 0.1)
        log_z_G, mean_GD = found.log_z.cpu(), found.mean.cpu()
    logits_GS = queries_GD.double() @ rows_SD.double().T / 0.1
    torch.testing.assert_close(log_z_G.double(), logits_GS.logsumexp(1), rtol=0, atol=1e-5)
    expected_GD = logits_GS.softmax(1) @ rows_SD.double()
    torch.testing.assert_close(mean_GD.double(), expected_GD, rtol=0, atol=1e-5)
    assert gpu.launches["_scaled_dot_product_efficient_attention"] == 1


def test_forms_are_those_that_take_a_type_and_length() -> None:
    assert partition_gpu.forms_for(torch.float32, 128) == ("attention",)
    assert partition_gpu.forms_for(torch.bfloat16, 128) == ("attention", "cudnn", "triton")
    assert partition_gpu.forms_for(torch.float16, 100) == ("attention", "cudnn")
    assert partition_gpu.forms_for(torch.float16, 200) == ("attention",)
