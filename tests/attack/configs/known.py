"""Attempts that broke an earlier revision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.attack.campaign import Trial
from tests.attack.configs.attempts import FIFO, LINK, Attempt
from tests.attack.configs.odd_values import KEYS, bomb, inline_bomb, merge_bomb
from tests.foreign_files.child import Limits, run_command

REFUSED = "refused"
TRAIN_LIMITS = Limits(90.0, 3000.0)


def refused(*overrides: str, says: str = "", how: str = "config") -> Trial:
    """Return a trial of overrides that have to be refused by a message that names the first key."""
    key = says or overrides[0].partition("=")[0]
    return Attempt(how, overrides=overrides, wanted=REFUSED, says=[key]).trial()


def file(text: str, what: str, *says: str, how: str = "config", wanted: str = REFUSED) -> Trial:
    """Return a trial of one file."""
    return Attempt(how, {"a.yaml": text}, ["a.yaml"], wanted=wanted, says=says).trial(what)


def alias_bombs() -> Iterator[Trial]:
    """Yield files and overrides that say a lot by aliases."""
    long = "'" + "x" * 30_000 + "'"
    yield file(bomb(6, 9, long), "a long text 59,049 times by aliases, in nine lines", "a.yaml")
    yield file(bomb(9, 9, "x"), "nine lines of nine aliases", "a.yaml")
    yield file(merge_bomb(9, 9), "nine lines that merge nine aliases", "a.yaml")
    yield file(merge_bomb(30, 2), "thirty lines that merge two aliases", "a.yaml")
    for how in ("sweep", "profile"):
        yield file(merge_bomb(9, 9), "nine lines that merge nine aliases", "a.yaml", how=how)
    for leaf, depth in (("x", 9), (long, 6)):
        text = f"data.limit={inline_bomb(depth, 9, leaf)}"
        what = f"data.limit=[...] of {depth} lists by aliases"
        yield Attempt(overrides=[text], wanted=REFUSED, says=["data.limit"]).trial(what)
    yield refused("data.limit=&a [*a]")
    yield refused("data={x: &a {y: *a}}")


def many_keys() -> Iterator[Trial]:
    """Yield files with more keys than anybody writes."""
    keys = "".join(f"k{at}: 1\n" for at in range(30_000))
    yield file(keys, "30,000 keys", "a.yaml")
    few = "".join(f"k{at}: 1\n" for at in range(5_000))
    yield file(few, "5,000 unknown keys", "unknown key")
    yield file(f"{'k' * 200_000}: 1", "a key of 200,000 letters", "kkk")
    yield file("name: x\n" * 10_000, "one key 10,000 times", "stands twice")
    yield file(
        "sbatch:\n" + "".join(f"  {key}" for key in keys.splitlines(True)),
        "30,000 options",
        "a.yaml",
        how="profile",
    )
    yield Attempt(overrides=["a." * 30_000 + "b=1"], wanted=REFUSED).trial("30,000 sections deep")


def bases() -> Iterator[Trial]:
    """Yield files whose base is no file, or that stand on too many of them."""
    odd = {"pipe.yaml": FIFO, "zero.yaml": f"{LINK}/dev/zero", "loop.yaml": f"{LINK}loop.yaml"}
    for name in (*odd, "/dev/zero", '"a\\0b"', "x" * 5000, "/proc/kmsg"):
        files = {**odd, "top.yaml": f"base: {name}\n"}
        attempt = Attempt(files=files, names=["top.yaml"], wanted=REFUSED, says=["config"])
        yield attempt.trial(f"base: {name[:40]}")
    for name in ("pipe.yaml", "/dev/zero", "loop.yaml", "a\0b"):
        yield Attempt(files=odd, names=[name], wanted=REFUSED).trial(f"--config {name!r}")
    chain = {f"f{at}.yaml": f"base: f{at + 1}.yaml\n" for at in range(2000)}
    yield Attempt(
        files={**chain, "f2000.yaml": ""}, names=["f0.yaml"], wanted=REFUSED, says=["base"]
    ).trial("a chain of 2,000 bases")
    twice = {f"f{at}.yaml": f"base: [f{at + 1}.yaml, f{at + 1}.yaml]\n" for at in range(24)}
    yield Attempt(
        files={**twice, "f24.yaml": ""}, names=["f0.yaml"], wanted=REFUSED, says=["base"]
    ).trial("24 files of two bases each")
    large = "# " + "x" * 2_000_000
    yield file(large, "a file of 2 MB", "a.yaml")
    yield Attempt("run", {"run/config.yaml": large}, wanted=REFUSED).trial("a run's of 2 MB")


NUMBERS_BEYOND_USE = (
    "curriculum.rounds=1000000000",
    "curriculum.rounds=9223372036854775807",
    "run.threads=1000000000",
    "run.stall_seconds=1e15",
    "run.stall_seconds=1e300",
    f"run.time_limit={'9' * 30}",
    f"run.time_limit={'9' * 400}",
    f"run.time_limit={'9' * 5000}d",
    f"curriculum.epochs={'9' * 30}",
    f"data.limit={'9' * 400}",
    f"data.image_size={'9' * 400}",
    f"optim.batch_size={'9' * 30}",
    f"encoder.feature_dim={'9' * 400}",
    f"evaluation.knn={'9' * 400}",
    "optim.lr=1e300",
    "run.save_minutes=1e308",
    "data.std=[1e-300, 1, 1]",
    "data.mean=[1e300, 1, 1]",
)
OPTIONAL_KEYS = (
    "data.limit",
    "data.limit_test",
    "data.test_resize",
    "data.cache_side",
    "data.test",
    "encoder.weights",
    "run.threads",
    "run.time_limit",
)


LARGEST = (
    "run.stall_seconds=1e9",
    "run.save_minutes=1e9",
    "run.time_limit=16666666",
    "run.log_every=1000000000",
    "run.threads=512",
    "run.keep=1000000000",
    "evaluation.knn=1000000000",
    "optim.batch_size=1000000000",
    "optim.lr=1e30",
    "optim.milestones=[1000000000]",
    "discovery.memory_mb=100000000",
    "data.limit=1000000000000",
    "data.image_size=8192",
    "data.std=[1e-6, 1000, 1]",
    "encoder.feature_dim=65536",
    "curriculum.epochs=1000000",
    "curriculum.rounds=5000",
)
"""Values at their bounds, with which runs have to go on."""


def numbers() -> Iterator[Trial]:
    """Yield numbers beyond their use, what is no number, and the largest numbers of all."""
    yield Attempt(overrides=LARGEST, wanted="accepted").trial("every number at its bound")
    for override in NUMBERS_BEYOND_USE:
        yield refused(override)
    for key in OPTIONAL_KEYS:
        assert key in KEYS
        for text in (".nan", ".inf", "1e309"):
            yield refused(f"{key}={text}")
    for name in ("gpus_per_node", "memory_gb", "cpus_per_node"):
        yield file(f"{name}: .nan", f"{name}: .nan", name, how="profile")
    yield file(f"cpus_per_node: {'9' * 400}", "400 digits", "cpus_per_node", how="profile")
    yield file("name: s\nruns: [{run.threads: .nan}]", "runs: [{run.threads: .nan}]", how="sweep")
    grid = "".join(f"  {key}: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n" for key in KEYS[:9])
    yield file(f"name: s\ngrid:\n{grid}", "a sweep of a billion runs", "runs", how="sweep")
    for time in ("9" * 30, "9" * 400, "99999999999d"):
        attempt = Attempt("size", size={"time": time}, wanted=REFUSED, says=["--time"])
        yield attempt.trial(f"--time {time[:40]}")
    for name in ("nodes", "gpus", "workers"):
        attempt = Attempt("size", size={name: 10**15}, wanted=REFUSED, says=[name])
        yield attempt.trial(f"--{name} 1e15")


TAGS = (
    "!!int ''",
    "!!float ''",
    "!!bool maybe",
    "!!timestamp soon",
    "!!omap [a: 1]",
    "0x" + "f" * 50_000,
    "9" * 5000,
)


def texts() -> Iterator[Trial]:
    """Yield values that PyYAML or Python stumble over, and keys that a proposal looks at."""
    for text in TAGS:
        yield refused(f"seed={text}")
    for override in (
        "data.image_size=[1]",
        "data.image_size=.inf",
        "curriculum.rounds=-1",
        "curriculum.rounds={}",
        "curriculum.epochs=.inf",
        "run.root=3",
        "run.root={a: 1}",
        "data.limit=x",
    ):
        yield refused(override, how="proposal")
    for key in ("run.root", "data.train", "encoder.weights"):
        yield refused(f'{key}="a\\0b"')
        yield refused(f"{key}={'x' * 5000}")
    yield refused(f"name={'x' * 300}")
    yield refused(f"method={'x' * 100_000}", says="method")
    for content in (FIFO, f"{LINK}/dev/zero", "[" * 100_000):
        attempt = Attempt("hardware", {"h.json": content}, ["h.json"], wanted=REFUSED)
        yield attempt.trial(f"measured hardware is {content[:20]}")


MISFITS = {
    "encoder.name=tiny data.image_size=16": "25 to 32",
    "encoder.name=tiny data.image_size=64": "25 to 32",
    "encoder.name=cifar_alexnet data.image_size=16": "32 to 39",
    "encoder.name=alexnet data.image_size=32": "223 to 254",
    "encoder.name=torchvision_alexnet data.image_size=32": "63",
}
"""Pairs that no encoder is made for, and the sides in the message."""


TOO_LARGE = (
    "run.threads=1000000000",
    "run.stall_seconds=1e15",
    "curriculum.rounds=2000000000",
)
"""Values that only a real run refuses."""


def misfits() -> Iterator[Trial]:
    """Yield pairs of an encoder and a side, each in a real run."""
    for given, says in MISFITS.items():
        yield Trial(f"train: {given}", training(given.split(), says))
    for given in TOO_LARGE:
        key = given.partition("=")[0]
        yield Trial(f"train: {given}", training([given], key))


def training(overrides: list[str], says: str) -> Callable[[Path], str]:
    """Return what trains a run that has to be refused before anything is written."""

    def carry_out(folder: Path) -> str:
        settings = ("name=run", "data.limit=40", "run.device=cpu", *overrides)
        command = ("and-dist", "train", "--config", "debug", *settings)
        outcome = run_command(command, folder, limits=TRAIN_LIMITS)
        last = outcome.said.strip().splitlines()[-1:]
        if outcome.exceeded or "Traceback" in outcome.said or outcome.status != 2:
            return f"status {outcome.status} {outcome.exceeded} {last}"
        if (folder / "runs").exists():
            return "it was refused after something was written"
        return "" if says in outcome.said else f"the message does not say {says!r}: {last}"

    return carry_out


KNOWN = (
    *alias_bombs(),
    *many_keys(),
    *bases(),
    *numbers(),
    *texts(),
    *misfits(),
)
