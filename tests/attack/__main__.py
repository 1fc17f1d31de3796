"""python -m tests.attack --trials N --seed S [--only KIND] [--known] [--json FILE]

Attack the program with configs, sources, run folders, disks and files of others, at random and by
what broke earlier revisions. Exit status 1 if anything broke.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.attack import folders, locks, planted, sources
from tests.attack.campaign import Kind, Verdict, run_campaign, summarise
from tests.attack.configs.kind import KIND as CONFIGS
from tests.attack.disks import KIND as DISKS

KINDS: tuple[Kind, ...] = (
    DISKS,
    locks.KIND,
    sources.KIND,
    planted.KIND,
    folders.KIND,
    CONFIGS,
)
"""The longest trials come first, so that none is left alone at the end."""
MOST_AT_ONCE = 2


def main() -> int:
    """Run a campaign, and print what broke and the counts by kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the kinds whose name has this in it")
    parser.add_argument("--known", action="store_true", help="all that broke before, and no more")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if given.only in kind.name]
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="and-dist-attack-") as name:
        root = Path(name).resolve()
        for verdict in run_campaign(
            kinds, given.trials, given.seed, root, MOST_AT_ONCE, given.known
        ):
            verdicts.append(verdict)
            if verdict.broke:
                print(f"{verdict.kind}: {verdict.what}: {verdict.broke}", flush=True)
    figures = {"trials": len(verdicts), "seed": given.seed, "kinds": summarise(verdicts)}
    print(json.dumps(figures, indent=1))
    if given.json:
        each = [asdict(verdict) for verdict in verdicts if verdict.broke]
        given.json.write_text(json.dumps({**figures, "broke": each}, indent=1) + "\n")
    return 1 if any(verdict.broke for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
