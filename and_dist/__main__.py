"""Run `python -m and_dist`, the form that torchrun starts."""

from and_dist.cli import main

if __name__ == "__main__":
    main()
