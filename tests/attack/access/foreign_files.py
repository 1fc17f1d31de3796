"""Give data sets and weights that somebody else wrote to the readers, each in a process of its own.

A reader may read a file, or refuse it by a ValueError. It may not run what the file names, crash,
never end, or raise anything else.

    python -m tests.attack.access.foreign_files [--seed S] [--every N]
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import savemat

from and_dist.config.schema import EncoderConfig
from and_dist.data.importers.pixels import find_cifar, find_svhn
from and_dist.models.encoders import build_encoder
from and_dist.models.pretrained import load_weights

SECONDS = 30
TOUCH = "touch executed"
MATS = 40
"""The number of MATLAB files that a seed bends."""
CALLS: dict[str, bytes] = {
    "os.system": b"cos\nsystem\n(S'%b'\ntR",
    "posix.system": b"cposix\nsystem\n(S'%b'\ntR",
    "nt.system": b"cnt\nsystem\n(S'%b'\ntR",
    "os.popen": b"cos\npopen\n(S'%b'\ntR",
    "subprocess.call": b"csubprocess\ncall\n((S'sh'\nS'-c'\nS'%b'\nltR",
    "subprocess.Popen": b"csubprocess\nPopen\n((S'sh'\nS'-c'\nS'%b'\nltR",
    "pty.spawn": b"cpty\nspawn\n((S'sh'\nS'-c'\nS'%b'\nltR",
    "eval": b'c__builtin__\neval\n(S\'__import__("os").system("%b")\'\ntR',
    "builtins.eval": b'cbuiltins\neval\n(S\'__import__("os").system("%b")\'\ntR',
    "exec": b"c__builtin__\nexec\n(S'import os; os.system(\"%b\")'\ntR",
    "execfile": b"c__builtin__\nexecfile\n(S'/dev/zero'\ntR",
    "open": b"c__builtin__\nopen\n(S'executed'\nS'w'\ntR",
    "io.open": b"cio\nopen\n(S'executed'\nS'w'\ntR",
    "getattr": b"c__builtin__\ngetattr\n(cos\nfork\nS'__call__'\ntR",
    "apply": b"c__builtin__\napply\n(cos\nsystem\n(S'%b'\nttR",
    "map": b"c__builtin__\nmap\n(cos\nsystem\n(S'%b'\nltR",
    "importlib": b"cimportlib\nimport_module\n(S'antigravity'\ntR",
    "__import__": b"c__builtin__\n__import__\n(S'antigravity'\ntR",
    "runpy": b"crunpy\n_run_code\n(S'import os; os.system(\"%b\")'\n}tR",
    "timeit": b"ctimeit\ntimeit\n(S'__import__(\"os\").system(\"%b\")'\nS''\nNI1\ntR",
    "code": b"ccode\nInteractiveInterpreter\n)R",
    "ctypes": b"cctypes\nCDLL\n(S'libc.so.6'\ntR",
    "pickle.loads": b"cpickle\nloads\n(S'cos\\nsystem\\n(S\"%b\"\\ntR.'\ntR",
    "_pickle.loads": b"c_pickle\nloads\n(S'cos\\nsystem\\n(S\"%b\"\\ntR.'\ntR",
    "marshal": b"cmarshal\nloads\n(S'abc'\ntR",
    "shutil.rmtree": b"cshutil\nrmtree\n(S'victim'\ntR",
    "os.remove": b"cos\nremove\n(S'victim/file'\ntR",
    "webbrowser": b"cwebbrowser\nopen\n(S'file:///dev/null'\ntR",
    "socket": b"csocket\ncreate_connection\n((S'127.0.0.1'\nI9\nttR",
    "operator": b"coperator\nattrgetter\n(S'system'\ntR(cos\ntR",
    "partial": b"cfunctools\npartial\n(cos\nsystem\nS'%b'\ntR)R",
    "reconstructor": b"ccopy_reg\n_reconstructor\n(cos\n_wrap_close\nc__builtin__\nobject\nNtR",
    "copyreg": b"ccopyreg\n__newobj__\n(c__builtin__\nobject\ntR",
    "codecs": b"c_codecs\nencode\n(S'x'\nS'zip_codec'\ntR",
    "numpy.ndarray": b"cnumpy\nndarray\n(I1000000\ntR",
    "numpy.ndarray of bytes": b"cnumpy\nndarray\n((I2\ntS'O'\nS'AAAAAAAABBBBBBBB'\ntR",
    "numpy.core.ndarray": b"cnumpy.core.multiarray\nndarray\n((I4\ntS'O'\ntR",
    "numpy.fromfile": b"cnumpy\nfromfile\n(S'/dev/zero'\ntR",
    "numpy.load": b"cnumpy\nload\n(S'evil.npy'\nNI01\ntR",
    "numpy.memmap": b"cnumpy\nmemmap\n(S'victim/file'\ntR",
    "numpy.savetxt": b"cnumpy\nsavetxt\n(S'executed'\n(I1\nltR",
    "numpy.scalar": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'AAAAAAAA'\ntR",
    "numpy.frombuffer": b"cnumpy\nfrombuffer\n(S'AAAAAAAA'\nS'O'\ntR",
    "numpy.runstring": b"cnumpy.testing\nrunstring\n(S'open(0)'\n}tR",
    "numpy.dtype": b"cnumpy\ndtype\n((S'O'\nI100000\nttR",
    "torch.load": b"ctorch\nload\n(S'evil.pt'\ntR",
    "torch.hub": b"ctorch.hub\nload\n(S'.'\nS'x'\nS'local'\ntR",
    "torch.ops": b"ctorch._C\n_jit_unwrap\n(S'x'\ntR",
    "torch storage": b"ctorch\nFloatStorage\n(I999999999999\ntR",
    "torch from_file": b"ctorch\nFloatStorage.from_file\n(S'victim/file'\nI01\nI99\ntR",
    "rebuild": b"ctorch._utils\n_rebuild_tensor\n(NI99999999\n(I9\nt(I9\nttR",
    "rebuild_v2": b"ctorch._utils\n_rebuild_tensor_v2\n(NI-5\n(I9\nt(I-9\ntI00\nNtR",
    "instance": b"(S'%b'\nios\nsystem\n",
    "object": b"(cos\nsystem\nS'%b'\no",
    "new object": b"cos\nsystem\n(S'%b'\nt\x81",
    "extension": b"\x82\x01",
    "build": b"c__builtin__\nobject\n)R}S'__class__'\ncos\nsystem\nsb",
    "persistent": b"Pevil\n",
    "persistent value": b"(S'storage'\ncos\nsystem\nS'0'\nS'cpu'\nI9\ntQ",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0e%b\x85R",
    "deep": b"(" * 300_000 + b"l" * 300_000,
    "deep tuples": b")" + b"\x85" * 300_000,
    "long number": b"\x8b\xff\xff\xff\x7f",
    "long text": b"X\xff\xff\xff\x7fabc",
    "many copies": b"]q\x00" + b"(h\x00h\x00h\x00h\x00t" * 100_000,
    "doubling": b"(I1\nl" + b"2\x86" * 60,
}
"""Calls and other beginnings of a pickle by their names; %b is a command for a shell."""


def pickles() -> Iterator[tuple[str, bytes]]:
    """Every call, as the whole pickle, as a value of a dict, and as one that nobody looks at."""
    for name, call in CALLS.items():
        call = call.replace(b"%b", TOUCH.encode())
        yield name, call + b"."
        yield f"{name} as data", b"}(S'data'\n" + call + b"S'labels'\n]u."
        yield f"{name} beside the data", call + b"0}(S'data'\nI1\nS'labels'\n]u."


def as_cifar(content: bytes, folder: Path) -> Callable[[], object]:
    """Write CIFAR with one bad file."""
    labels = pickle.dumps({b"label_names": [b"a", b"b"]}, 2)
    images = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    for name in (*(f"data_batch_{n}" for n in range(2, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(images, 2))
    (folder / "batches.meta").write_bytes(labels)
    (folder / "data_batch_1").write_bytes(content)
    return lambda: find_cifar(folder)


def as_zip(content: bytes, folder: Path) -> Callable[[], object]:
    """Write it as torch.save does today."""
    with zipfile.ZipFile(folder / "weights.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(400))
        archive.writestr("archive/version", "3\n")
    return as_weights(folder / "weights.pt")


def as_old(content: bytes, folder: Path) -> Callable[[], object]:
    """Write it as torch.save did until 1.5, after which came the storages' names."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    (folder / "weights.t7").write_bytes(
        magic + pickle.dumps({"little_endian": True}, 2) + content + pickle.dumps([], 2)
    )
    return as_weights(folder / "weights.t7")


def as_weights(file: Path) -> Callable[[], object]:
    """Load a file into an encoder."""
    encoder = build_encoder(EncoderConfig(name="tiny"), 0)
    return lambda: load_weights(encoder, file)


def mats(seed: int) -> Iterator[tuple[str, bytes]]:
    """Files of SVHN that are bent in some bytes, or cut short."""
    random_ = random.Random(seed)
    for number in range(MATS):
        whole = io.BytesIO()
        content: dict[str, Any] = {
            "X": np.zeros((4, 4, 3, 5), np.uint8),
            "y": np.ones((5, 1)),
        }
        if number % 3 == 0:
            content["more"] = np.array([{"a": 1}, "text"], object)
        savemat(whole, content, do_compression=number % 2 == 0)
        bytes_ = bytearray(whole.getvalue())
        for _ in range(random_.randint(1, 8)):
            at = random_.randrange(100, len(bytes_))
            bytes_[at] = random_.choice([0, 1, 0x7F, 0x80, 0xFF, random_.randrange(256)])
        if number % 5 == 4:
            del bytes_[random_.randrange(len(bytes_)) :]
        yield f"mat {number}", bytes(bytes_)


def as_svhn(content: bytes, folder: Path) -> Callable[[], object]:
    """Write it as the training file of SVHN."""
    (folder / "train_32x32.mat").write_bytes(content)
    return lambda: find_svhn(folder)


def attempt(read: Callable[[], object], folder: Path) -> str:
    """Read in a child process; return what is wrong with how it went, "" for nothing."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        signal.alarm(SECONDS)
        status = 1
        try:
            read()
            status = 0
        except ValueError:
            status = 0
        except BaseException as error:
            (folder / "raised").write_text(f"{type(error).__name__}: {str(error)[:80]}")
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if (folder / "executed").exists() or not (folder / "victim/file").exists():
        return "was executed"
    if os.WIFSIGNALED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return (folder / "raised").read_text() if status else ""


def campaign(seed: int, every: int = 1) -> tuple[Counter[str], list[str]]:
    """Try every `every`-th of them; return counts and what went wrong."""
    counts, wrongs = Counter[str](), list[str]()
    cases = [
        (f"{name} in {way.__name__.removeprefix('as_')}", content, way)
        for name, content in pickles()
        for way in (as_cifar, as_zip, as_old)
    ]
    cases += [(name, content, as_svhn) for name, content in mats(seed)]
    for name, content, way in cases[seed % every :: every]:
        folder = Path(tempfile.mkdtemp())
        (folder / "victim").mkdir()
        (folder / "victim/file").write_text("")
        kind = "mats" if way is as_svhn else "pickles"
        counts[kind] += 1
        if wrong := attempt(way(content, folder), folder):
            counts[f"wrong {kind}"] += 1
            wrongs.append(f"{name}: {wrong}")
        shutil.rmtree(folder)
    return counts, wrongs


def main() -> None:
    """Print what went wrong, and how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, wrongs = campaign(options.seed, options.every)
    print("\n".join(wrongs))
    print({"wrong": len(wrongs), **counts})
    sys.exit(bool(wrongs))


if __name__ == "__main__":
    main()
