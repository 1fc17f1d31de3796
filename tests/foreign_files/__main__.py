"""python -m tests.foreign_files [--only WORD]: the whole campaign, as `make nightly` runs it.

Prints what each scene writes, what went wrong, and how many cases there were; exit status 1 if
anything of a user's was lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.foreign_files.campaign import cases_of, find_places, run_all, run_case, run_kill
from tests.foreign_files.scenes import PREPARE, SCENES


def main() -> int:
    """Run all scenes whose name has the given word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Scenes whose name has this in it.")
    parser.add_argument("--no-kills", action="store_true", help="Plant things, kill nothing.")
    parser.add_argument("--no-plants", action="store_true", help="Kill, plant nothing.")
    given = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="and-dist-foreign-") as name:
        root = Path(name).resolve()
        for number, scene in enumerate(s for s in SCENES if given.only in s.name):
            started, base = time.monotonic(), root / str(number)
            places, folders = find_places(scene, base / "first")
            tasks = [
                partial(run_case, case, base / f"case-{at}", base / "first")
                for at, case in enumerate(cases_of(scene, places, folders))
                if not given.no_plants
            ]
            if scene in PREPARE and not given.no_kills:
                changes = len(scene.run(scene.laid(base / "counted")).touched)
                for first in (None, base / "first"):
                    tasks += [
                        partial(run_kill, scene, at, base / f"kill-{at}-{first is None}", first)
                        for at in range(changes)
                    ]
            found = run_all(tasks)
            wrong += found
            print(
                f"{scene.name}: {len(places)} places, {len(tasks)} cases, {len(found)} wrong, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            for what in found:
                print(f"  {what}", flush=True)
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
