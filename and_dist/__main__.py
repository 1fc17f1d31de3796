"""Run `and-dist`, or `python -m and_dist`, the form that torchrun starts."""

from and_dist.cli import main
from and_dist.utils.exits import run_and_leave


def run() -> None:
    """Run the command line in a process of its own."""
    run_and_leave(main)


if __name__ == "__main__":
    run()
