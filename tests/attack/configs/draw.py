"""Draw attempts at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from launcher.jobs.cluster_profile import Profile
from tests.attack.campaign import Trial
from tests.attack.configs.attempts import FIFO, LINK, Attempt, in_bytes
from tests.attack.configs.odd_values import (
    KEYS,
    SECTIONS,
    TEXTS,
    UNKNOWN,
    inline_bomb,
    odd_value,
    structures,
)

SHIPPED = [path for path in sorted(Path("configs").rglob("*.yaml")) if path.stat().st_size < 5000]
ENCODERS = (
    "tiny",
    "small",
    "cifar_resnet18",
    "cifar_resnet50",
    "cifar_alexnet",
    "resnet18",
    "resnet50",
    "resnet101",
    "alexnet",
    "torchvision_alexnet",
    "torchvision/mobilenet_v3_small",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_0",
    "torchvision/resnet",
    "timm/convnext_atto",
    "timm/mobilenetv3_small_050",
    "timm/",
    "os:abort",
    "os.path:join",
    ":",
)
DOORS_OF_KEYS = ("config", "config", "config", "request", "proposal", "sweep", "overrides")


def draw(chance: random.Random) -> Trial:
    """Draw any attempt."""
    forms: dict[Callable[[random.Random], Attempt], int] = {
        one_key: 42,
        file_of_keys: 12,
        structure: 12,
        bent_file: 8,
        bases: 8,
        sweep: 5,
        profile: 5,
        other_texts: 3,
        pair: 5,
    }
    form = chance.choices(list(forms), list(forms.values()))[0]
    return form(chance).trial()


def one_key(chance: random.Random) -> Attempt:
    """Set one key to an odd value, by an override through any door."""
    key, (text, value, is_not_finite) = chance.choice(KEYS), odd_value(chance)
    how = chance.choice(DOORS_OF_KEYS)
    override = f"{key}={text}"
    if how == "sweep":
        content = f"name: s\noverrides: [run.root=.]\ngrid:\n  {key}: [{text}]\n"
        return Attempt("sweep", {"s.yaml": in_bytes(content)}, ["s.yaml"])
    known = value is not UNKNOWN and how in ("config", "request")
    wanted = "refused" if is_not_finite and how in ("config", "request") else ""
    # A folder of images that is no such folder is not refused by its key, but by its path.
    says = [key.split(".")[-1]] if known and key not in ("data.train", "data.test") else []
    kept = {key: value} if known else {}
    names = ["demo"] if how == "request" else []
    return Attempt(how, {}, names, [override], wanted, says, kept)


def file_of_keys(chance: random.Random) -> Attempt:
    """Set some keys in a file, over a shipped config."""
    lines = []
    for key in chance.sample(KEYS, chance.randint(1, 4)):
        *sections, last = key.split(".")
        text = odd_value(chance)[0]
        indent = ""
        for section in sections:
            lines.append(f"{indent}{section}:")
            indent += "  "
        lines.append(f"{indent}{last}: {text}")
    names = chance.choice((["a.yaml"], ["demo", "a.yaml"], ["debug", "a.yaml"]))
    return Attempt(files={"a.yaml": in_bytes("\n".join(lines))}, names=names)


def structure(chance: random.Random) -> Attempt:
    """Load a file of odd structure, through any door that reads one."""
    content = in_bytes(structures(chance))
    how = chance.choice(("config", "config", "run", "earlier run", "sweep", "profile"))
    if how in ("run", "earlier run"):
        return Attempt(how, {"run/config.yaml": content})
    return Attempt(how, {"a.yaml": content}, ["a.yaml"])


def bent_file(chance: random.Random) -> Attempt:
    """Bend bytes of a shipped config."""
    content = bytearray(chance.choice(SHIPPED).read_bytes())
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(content))
        way = chance.randrange(4)
        if way == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            content[at:at] = chance.randbytes(chance.randint(1, 8))
        elif way == 2:
            del content[at : at + chance.randint(1, 20)]
        else:
            content[at:at] = content[:at][-chance.randint(1, 60) :]
    text = bytes(content)
    if chance.random() < 0.1:
        text = text.decode("utf-8", "replace").encode(chance.choice(("utf-16", "utf-32", "utf-7")))
    how = chance.choice(("config", "run", "earlier run", "sweep", "profile"))
    if how in ("run", "earlier run"):
        return Attempt(how, {"run/config.yaml": text.decode("latin-1")})
    return Attempt(how, {"a.yaml": text.decode("latin-1")}, ["a.yaml"])


def bases(chance: random.Random) -> Attempt:
    """Let files name each other, and what is no file, as their bases."""
    odd = {"pipe.yaml": FIFO, "zero.yaml": f"{LINK}/dev/zero", "loop.yaml": f"{LINK}loop.yaml"}
    others = [
        *odd,
        "/dev/zero",
        "/dev/stdin",
        "/dev/tty",
        "/proc/self/mem",
        "/proc/kmsg",
        "/proc/self/maps",
        "/",
        ".",
        "",
        "none.yaml",
        "x" * 300,
        "x/" * 3000,
        '"a\\0b"',
        '"\\ud800"',
        "~",
        "3",
        "[a, b]",
        "../../../../../../etc/passwd",
    ]
    count = chance.choice((1, 2, 5, 40))
    files = dict(odd)
    for at in range(count):
        below = [f"f{chance.randrange(count)}.yaml" for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.4:
            below = [f"f{min(at + 1, count - 1)}.yaml"] * chance.randint(1, 3)
        if chance.random() < 0.4:
            below.append(chance.choice(others))
        content = f"base: [{', '.join(below)}]" if chance.random() < 0.8 else ""
        files[f"f{at}.yaml"] = in_bytes(f"{content}\nseed: {at}\n")
    name = chance.choice(["f0.yaml", "f0.yaml", "f0.yaml", *odd, "/dev/zero", "x" * 5000, "a\0b"])
    return Attempt(files=files, names=[name])


def sweep(chance: random.Random) -> Attempt:
    """Load a sweep of too many runs, odd settings or odd names."""
    keys = chance.sample(KEYS, chance.choice((1, 3, 8)))
    count = chance.choice((1, 3, 10, 100, 3000))
    forms = (
        lambda: "grid: {" + ", ".join(f"{key}: [{'1, ' * count}]" for key in keys) + "}",
        lambda: "grid:\n" + "".join(f"  {k}: {list(range(count))}\n" for k in keys),
        lambda: "runs: [" + ", ".join(f"{{{key}: {odd_value(chance)[0]}}}" for key in keys) + "]",
        lambda: f"runs: [{'{}, ' * count}]",
        lambda: f"runs: [{{seed: 1}}]\nparallel: {odd_value(chance)[0]}",
        lambda: f"runs: [{{seed: 1}}]\nname: {odd_value(chance)[0]}",
        lambda: f"runs: [{{seed: 1}}]\nconfig: [{odd_value(chance)[0]}]",
        lambda: f"runs: [{{seed: 1}}]\noverrides: [{odd_value(chance)[0]}]",
        lambda: f"runs: [{{{odd_value(chance)[0]}: 1}}]",
        lambda: f"grid: {{seed: {odd_value(chance)[0]}}}",
        lambda: f"grid: {{paper: [{odd_value(chance)[0]}]}}",
        lambda: f"grid: {{seed: [{inline_bomb(9, 9, 'x')}]}}",
    )
    text = chance.choice(forms)()
    name = "" if "name:" in text else "name: s\n"
    return Attempt("sweep", {"s.yaml": in_bytes(f"{name}{text}\n")}, ["s.yaml"])


FIELDS_OF_PROFILES = tuple(Profile.model_fields)


def profile(chance: random.Random) -> Attempt:
    """Load a cluster profile of odd values, or ask for a job of an odd size."""
    if chance.random() < 0.3:
        numbers = (0, 1, 2, 8, 10**4, 10**9, 10**15, 2**63, 10**30, -1)
        times = ("1d", "9" * 30, "9" * 9 + "d", "1e9", "0", "60s", "59s", "9" * 5000, "10000-0")
        size = {"nodes": chance.choice(numbers), "gpus": chance.choice(numbers)}
        return Attempt("size", size={**size, "time": chance.choice(times)})
    lines = []
    for name in chance.sample(FIELDS_OF_PROFILES, chance.randint(1, 3)):
        text = odd_value(chance)[0]
        inside = (f"[{text}]", f"{{A: {text}}}", f"{{{text}: a}}", text)
        lines.append(f"{name}: {chance.choice(inside)}")
    return Attempt("profile", {"p.yaml": in_bytes("\n".join(lines))}, ["p.yaml"])


def other_texts(chance: random.Random) -> Attempt:
    """Give overrides of odd form, and files of measured hardware."""
    if chance.random() < 0.3:
        content = chance.choice(
            (FIFO, f"{LINK}/dev/zero", "[" * 100_000, '{"hardware": {}}', '{"hardware": 3}', "")
        )
        return Attempt("hardware", {"h.json": content}, ["h.json"])
    depth = chance.choice((1, 3, 100, 5000, 30_000))
    text = chance.choice(list(TEXTS))
    overrides = (
        f"{'a.' * depth}b={text}",
        f"data={text}",
        f"{chance.choice(SECTIONS)}={text}",
        f"{text}={text}",
        text,
        f"data.limit={inline_bomb(9, 9, 'x')}",
        f"data.limit={inline_bomb(5, 9, 'x' * 30_000)}",
        f"{'x' * depth}=1",
        f"data.{'x' * depth}=1",
        f"method={'x' * depth}",
        "=",
        "==",
        "a=",
        ".=1",
        "data.=1",
        f"preset={text}",
        f"paper=[{text}]",
    )
    how = chance.choice(("config", "proposal", "request", "overrides", "reference"))
    return Attempt(how, overrides=[chance.choice(overrides)])


def pair(chance: random.Random) -> Attempt:
    """Draw an encoder with a size of images and other settings, which it has to work with."""
    side = chance.choice((8, 12, 16, 24, 25, 28, 32, 33, 39, 40, 48, 62, 63, 64, 96, 128))
    side = chance.choice((side, side, side, 222, 223, 224, 225, 238, 239, 300, 4096, 10**6))
    others = (
        "optim.momentum=0",
        "optim.nesterov=true",
        "optim.fused=false",
        "optim.milestones=[]",
        "optim.weight_decay=1e20",
        "optim.lr=1e30",
        "optim.name=adamw",
        "optim.name=lars",
        "optim.trust=1e30",
        "optim.betas=[0, 0]",
        "optim.layer_decay=0.001",
        "optim.weight_decay_of=matrices",
        "optim.schedule=cosine",
        "optim.span=run",
        "optim.warmup_epochs=5",
        "optim.warmup_epochs=1e6",
        "optim.lr_per_256=1e30",
        "optim.clip_norm=1e-30",
        "optim.accumulate=3",
        "optim.accumulate=1024",
        "encoder.head=mlp",
        "encoder.hidden_dim=1",
        "encoder.hidden_norm=true",
        "encoder.checkpointing=true",
        "encoder.options={patch_size: 0}",
        "encoder.options={width_mult: -1}",
        "encoder.options={depths: [1, 1, 1, 1]}",
        "encoder.options={dims: []}",
        "encoder.options={drop_path_rate: 0.9}",
        "encoder.feature_dim=1",
        "encoder.feature_dim=4096",
        "encoder.feature_dim=1000000",
        "encoder.precision=bfloat16",
        "encoder.precision=auto",
        "encoder.channels_last=false",
        "data.mean=[1e-30, 1e-30, 1e-30]",
        "data.std=[1e-30, 1, 1]",
        "data.std=[1e30, 1, 1]",
        "data.limit=1",
        "data.limit=3",
        "data.holdout=0.999",
        "curriculum.neighbours=100",
        "method=supervised",
        "method=instance_nce",
        "method=nat",
        "method=deepcluster",
        "run.threads=32",
        "run.threads=3",
        "bank.dtype=float16",
        "objective.temperature=0.01",
    )
    # Half of the pairs may well fit, so that more than the check of the side is tried.
    name = chance.choice(ENCODERS if chance.random() < 0.6 else ("tiny", "small", "cifar_alexnet"))
    side = 32 if chance.random() < 0.3 else side
    some = chance.sample(others, chance.randint(0, 3))
    overrides = [f"encoder.name={name}", f"data.image_size={side}", *some]
    return Attempt(
        overrides=["run.root=.", "name=pair", "data.limit=40", *overrides], weight="heavy"
    )
