"""Compare the losses of two runs, step by step.

    python -m benchmarks.device.compare_losses RUN RUN [--steps N] [--most 0.05]

The command ends with exit code 1 if the runs have different numbers of steps, or if a loss of the
first N steps differs by more than --most. After a discovery two runs may diverge for good, because
one different neighbour changes the loss; so only the first round can be compared.
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
    """Print how far two runs are apart and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, help="steps that are compared; default all")
    parser.add_argument(
        "--most", type=float, default=float("inf"), help="largest difference that is allowed"
    )
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
