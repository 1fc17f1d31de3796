"""Compile Triton kernels for GPUs that need not be there, and report the memory of each."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""The shared memory that one block may take, by ten times the compute capability."""
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""The instruction by which tensor cores multiply."""


@dataclass(frozen=True)
class Variant:
    """Describe one compilation of a kernel: types of its parameters, constants and options."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    """A Triton type, such as `*bf16` or `i32`, for each parameter that is not a constant."""
    constants: Mapping[str, int | bool | str]
    options: Mapping[str, int]
    is_chosen: bool = False
    """True for what is proposed for training: it has to keep all it holds in registers, and to fit
    the shared memory, on every architecture."""

    def source(self) -> ASTSource:
        """Return the source for triton.compile, with the alignment that torch's tensors have.

        torch aligns its allocations to 16 bytes or more, and a launch passes that on to the
        compiler. It has to be stated here too: without it every load is of one element, no copy is
        asynchronous and half of the shared memory is gone, so that the kernel is not the one of a
        launch.
        """
        names = self.kernel.arg_names
        pointers = [name for name, kind in self.types.items() if kind.startswith("*")]
        return ASTSource(
            fn=self.kernel,
            signature={**self.types, **dict.fromkeys(self.constants, "constexpr")},
            constexprs=dict(self.constants),
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
        )


class Usage(NamedTuple):
    """Hold what a compiled kernel takes of a multiprocessor."""

    registers: int
    spilled_bytes: int
    """Bytes of each thread that lie in memory because no register was left."""
    shared_bytes: int


def usage_of(cubin: bytes, shared_bytes: int) -> Usage:
    """Return the registers and stack of a kernel's machine code, read by Triton's own cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return Usage(int(found[1]), int(found[2]), shared_bytes)


def compile_variant(variant: Variant, architecture: int, cubins: Path | None) -> bool:
    """Compile one variant, print a line about it and return whether it is as it has to be."""
    name = f"sm_{architecture} {variant.name}"
    target = GPUTarget("cuda", architecture, 32)
    try:
        kernel = triton.compile(variant.source(), target=target, options=dict(variant.options))
    except Exception as error:  # the compiler raises many kinds
        print(f"{name}: FAILS {type(error).__name__} {str(error)[:200]}", flush=True)
        return False
    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    used, most = usage_of(cubin, kernel.metadata.shared), SHARED_BYTES[architecture]
    too_much = "" if used.shared_bytes <= most else f", more than the {most:,} of this GPU"
    instruction = TENSOR_CORES[architecture]
    print(
        f"{name}: shared {used.shared_bytes:,} bytes{too_much}; {used.registers} registers, "
        f"{used.spilled_bytes:,} bytes spilled; {ptx.count(instruction)} {instruction}"
        f"{'; chosen' if variant.is_chosen else ''}"
    )
    if cubins is not None:
        cubins.mkdir(parents=True, exist_ok=True)
        (cubins / f"{name.replace(' ', '-')}.cubin").write_bytes(cubin)
    return not (variant.is_chosen and (too_much or used.spilled_bytes))


def compile_variants(
    variants: Iterable[Variant], architectures: Iterable[int], cubins: Path | None
) -> int:
    """Compile every variant for every architecture and return how many failed.

    A chosen one also fails if it spills registers or takes more shared memory than there is.
    """
    variants = list(variants)
    done = [
        compile_variant(variant, architecture, cubins)
        for architecture in architectures
        for variant in variants
    ]
    print(f"{len(done)} compilations, {done.count(False)} failed")
    return done.count(False)


def parse_kernel_arguments(description: str | None, rows: int) -> argparse.Namespace:
    """Parse the subcommands of a kernel: `compile`, `check` and `time`, which takes `rows` rows."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile", help="compile for GPUs that need not be there")
    compiling.add_argument(
        "--architectures",
        type=int,
        nargs="+",
        choices=sorted(SHARED_BYTES),
        default=sorted(SHARED_BYTES),
    )
    compiling.add_argument("--cubins", type=Path, help="write the machine code to this folder")
    commands.add_parser("check", help="compare with float64 on a CPU; needs TRITON_INTERPRET=1")
    timing = commands.add_parser("time", help="time it on a GPU")
    timing.add_argument(
        "--rows", type=int, default=rows, help=f"rows of the bank; default {rows:,}"
    )
    given = parser.parse_args()
    # Triton decides at import whether a kernel is compiled or interpreted, for the whole process.
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if is_interpreted != (given.command == "check"):
        parser.error(
            f"{given.command} runs {'without' if is_interpreted else 'with'} TRITON_INTERPRET=1"
        )
    return given
