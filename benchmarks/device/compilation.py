"""Compile Triton kernels for GPUs that need not be there, and report the memory of each."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""The shared memory that one block may take, by ten times the compute capability."""


class Tiles(NamedTuple):
    """Hold the shape of a kernel's tile, and how many warps and pipeline stages work on it."""

    queries: int
    rows: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """Return a name for log lines and files."""
        return f"{self.queries}x{self.rows}-warps{self.warps}-stages{self.stages}"


@dataclass(frozen=True)
class Variant:
    """Describe one compilation of a kernel: types of its parameters, constants and options."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    """A Triton type, such as `*bf16` or `i32`, for each parameter that is not a constant."""
    constants: Mapping[str, int | bool | str]
    options: Mapping[str, int]

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


def compile_variant(variant: Variant, architecture: int, cubins: Path | None) -> bool:
    """Compile one variant, print a line about it and return whether it compiled."""
    name = f"sm_{architecture} {variant.name}"
    target = GPUTarget("cuda", architecture, 32)
    try:
        kernel = triton.compile(variant.source(), target=target, options=dict(variant.options))
    except Exception as error:  # the compiler raises many kinds
        print(f"{name}: FAILS {type(error).__name__} {str(error)[:200]}", flush=True)
        return False
    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    shared, most = kernel.metadata.shared, SHARED_BYTES[architecture]
    too_much = "" if shared <= most else f", more than the {most:,} of this GPU"
    products = f"{ptx.count('wgmma.mma_async')} wgmma, {ptx.count('mma.sync')} mma"
    print(f"{name}: shared {shared:,} bytes{too_much}; {products}; cubin {len(cubin):,} bytes")
    if cubins is not None:
        cubins.mkdir(parents=True, exist_ok=True)
        (cubins / f"{name.replace(' ', '-')}.cubin").write_bytes(cubin)
    return True


def compile_variants(
    variants: Iterable[Variant], architectures: Iterable[int], cubins: Path | None
) -> int:
    """Compile every variant for every architecture and return how many failed."""
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
        "--architectures", type=int, nargs="+", choices=sorted(SHARED_BYTES), default=[90]
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
