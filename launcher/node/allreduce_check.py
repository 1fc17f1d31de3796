"""Sum a number over all ranks; each rank of the doctor's job runs this.

python -m launcher.node.allreduce_check FOLDER
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from and_dist.utils.owned_files import write_file


def main() -> None:
    """Add up a 1 from each rank and write the sum to FOLDER/sum-RANK."""
    folder = Path(sys.argv[1])
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=timedelta(seconds=45))
    one = torch.ones(1, device=device)
    dist.all_reduce(one)
    write_file(folder / f"sum-{dist.get_rank()}", f"{one.item():.0f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
