"""Run `and-launch` by `python -m launcher`."""

from launcher.cli import main

main()
