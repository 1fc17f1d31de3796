"""Compare the losses of two runs, step by step.

    python -m benchmarks.device.compare_losses RUN RUN [--steps N] [--most 0.05]

The command ends with status 1 if the runs have different numbers of steps, or if a loss of the
first N steps differs by more than is allowed. After a discovery runs may part for good, because one
neighbour more or less is another loss; the first round is what can be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from and_dist.runs.metrics_file import read_metrics


def losses_of(run: Path) -> list[float]:
    """Return the loss of every step that a run logged."""
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl", "step")]


def main() -> int:
    """Print how far two runs are apart and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, help="that are compared; without it all")
    parser.add_argument("--most", type=float, default=float("inf"), help="that is allowed")
    given = parser.parse_args()
    first, second = (losses_of(run) for run in given.runs)
    if len(first) != len(second) or not first:
        print(f"the runs have {len(first)} and {len(second)} steps")
        return 1
    differences = [abs(a - b) for a, b in zip(first, second, strict=True)]
    apart = max(differences[: given.steps])
    names = " and ".join(run.name for run in given.runs)
    print(
        f"{names}: losses of the first {len(differences[: given.steps])} steps are at most "
        f"{apart:.2e} apart, of all {len(differences)} at most {max(differences):.2e}"
    )
    return int(apart > given.most)


if __name__ == "__main__":
    sys.exit(main())
