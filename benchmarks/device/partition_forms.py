"""Time forms of the partition, those by torch's attention operators among them.

The operators take rows that are cut along the head axis, as and_dist.method.partition cuts them.
They are called with the merge of the heads and without it, which shows what their kernels alone
take.
G queries, S rows (of a head, where there are heads), H heads, D feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from and_dist.method.partition_merge import Partition
from benchmarks.device.exact import partition_errors


@dataclass(frozen=True)
class Scene:
    """Hold the inputs that are timed, queries and rows in bfloat16, and their exact partition."""

    queries_GD: Tensor
    rows_SD: Tensor
    exact: Partition

    def time(self, name: str, form: Callable[[], object]) -> None:
        """Print the median time of a form, its rate, and how far it is from float64.

        A form that returns no Partition leaves its parts unmerged and has no error.
        """
        num_queries = len(self.queries_GD)
        try:
            found = form()
            off = ""
            if isinstance(found, Partition):
                off = "off {:.1e} {:.1e}".format(*partition_errors(found, self.exact))
            milliseconds = triton.testing.do_bench(form, warmup=25, rep=100, return_mode="median")
        except Exception as error:  # a form that is refused must not end the others
            reason = str(error).partition("\n")[0][:150]
            print(f"G {num_queries} {name:60} FAILS {type(error).__name__} {reason}", flush=True)
            return
        rate = 4e-9 * num_queries * self.rows_SD.numel() / milliseconds
        print(
            f"G {num_queries} {name:60} {milliseconds:7.3f} ms {rate:6.0f} TFLOP/s  {off}",
            flush=True,
        )


def forms_by_heads(
    queries_GD: Tensor, rows_SD: Tensor, temperature: float, heads: int
) -> dict[str, Callable[[], object]]:
    """Return forms by name: flash attention with its merge, then two operators without.

    Rows that remain when they are cut into heads, fewer than there are heads, are left out. They
    count in the error of flash attention.
    """
    per_head = len(rows_SD) // heads
    rows_1HSD = rows_SD[: per_head * heads].view(1, heads, per_head, -1)
    queries_1HGD = queries_GD.expand(1, heads, -1, -1)
    # Expanded queries have a stride of 0 along the heads, on which cuDNN's form does not rely.
    whole_queries_1HGD = queries_1HGD.contiguous()
    scale = 1 / temperature

    def flash_kernel() -> tuple[Tensor, Tensor]:
        """Return the mean and log Z of every head."""
        mean_1HGD, log_z_1HG, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            queries_1HGD, rows_1HSD, rows_1HSD, 0.0, False, False, scale=scale
        )
        # The operator may pad the query axis of log Z to a multiple of its tile.
        return mean_1HGD[0], log_z_1HG[0, :, : len(queries_GD)]

    def flash() -> Partition:
        """Return the partition over the rows of all heads."""
        mean_HGD, log_z_HG = flash_kernel()
        log_z_G = log_z_HG.logsumexp(dim=0)
        weights_HG = (log_z_HG - log_z_G).exp()
        return Partition(log_z_G, torch.einsum("hg,hgd->gd", weights_HG, mean_HGD.float()))

    def cudnn_kernel() -> object:
        """Return the outputs of cuDNN's operator, among them mean and log Z of every head."""
        return torch.ops.aten._scaled_dot_product_cudnn_attention(
            whole_queries_1HGD, rows_1HSD, rows_1HSD, None, True, 0.0, False, False, scale=scale
        )

    return {
        "flash": flash,
        "flash, kernel alone": flash_kernel,
        "cudnn, kernel alone": cudnn_kernel,
    }
