"""python -m benchmarks.all [--smoke] [--folder artefacts/bench] [NAME ...]

All benchmarks, or the named ones, each in a process of its own, its figures in FOLDER/NAME.json.
Status 1 if one failed; the others run all the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("partition", "step", "loader", "discovery", "evaluate", "checkpoint", "throughput")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="small sizes, to see that they run")
    parser.add_argument("--folder", type=Path, default=Path("artefacts/bench"))
    given = parser.parse_args()
    unknown = [name for name in given.names if not Path(__file__).with_name(f"{name}.py").exists()]
    if unknown:
        raise SystemExit(f"there is no benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    failed, started = [], time.monotonic()
    for name in given.names:
        begun = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += [*["--smoke"] * given.smoke, "--json", str(given.folder / f"{name}.json")]
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - begun:.0f} s in all", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(given.names)} benchmarks in {minutes:.1f} minutes; failed: {failed or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
