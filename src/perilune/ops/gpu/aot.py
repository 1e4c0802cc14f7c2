"""Compiling for a GPU that is not here, and reading from the result whether it can be any good.

What is compiled is what a `Recorder` recorded, specialised exactly as at a launch, so the compile cache that this fills
is the one a GPU's first request finds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.compiler import ASTSource, compile

from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.keys import Key, key, specialised
from perilune.ops.gpu.launch import Launch

_MATRIX = {
    "amdgcn": re.compile(r"^\s*v_(wmma|mfma|smfmac)_", re.M),
    "ptx": re.compile(r"^\s*(?:@%\w+\s+)?(wgmma\.mma_async|mma\.sync)", re.M),
}


class CompileError(RuntimeError):
    """A kernel that cannot be compiled, or cannot be here."""


@dataclass(frozen=True)
class Build:
    """One kernel, compiled for one architecture.

    `registers` per lane (vector and accumulation registers on AMD); `spills` registers kept in memory instead;
    `scratch` bytes of it per lane; `shared` bytes of LDS or shared memory; `products` matrix products in the source,
    `unmatched` those compiled to plain multiplications, `matrix` matrix instructions in the code, `unit` their name.
    """

    kernel: str
    form: str
    target: str
    tile: dict[str, int]
    warps: int
    stages: int
    registers: int
    spills: int
    scratch: int
    shared: int
    products: int
    unmatched: int
    matrix: int
    unit: str
    seconds: float

    def problems(self, arch: Arch) -> list[str]:
        """What is wrong with it: nothing may be."""
        found = []
        if self.spills or self.scratch:
            found.append(f"{self.spills} registers spilled, {self.scratch} bytes of scratch")
        if self.shared > arch.shared:
            found.append(f"{self.shared} bytes of shared memory, {arch.name} has {arch.shared}")
        if self.unmatched or (self.products and not self.matrix):
            found.append(f"{self.unmatched or self.products} matrix products without matrix instructions")
        return found


def distinct(launches: Iterable[Launch], arch: Arch) -> list[Launch]:
    """One launch of each binary, in order of first use."""
    found: dict[Key, Launch] = {}
    for launch in launches:
        found.setdefault(key(launch, arch), launch)
    return list(found.values())


def source(launch: Launch, arch: Arch) -> tuple[ASTSource, Any]:
    """(what the compiler is given, options) for one launch. Raises CompileError where kernels are interpreted."""
    if triton.knobs.runtime.interpret:
        raise CompileError("TRITON_INTERPRET is set: kernels are interpreted here, and cannot be compiled. Unset it.")
    options, signature, constants, attributes = specialised(launch, arch)
    return ASTSource(launch.kernel, signature, constants, attributes), options


def build(launch: Launch, arch: Arch) -> Build:
    """Compile one launch for `arch`, or take it from the cache. Raises CompileError if it cannot be compiled."""
    started = time.perf_counter()
    what, options = source(launch, arch)
    try:
        done = compile(what, target=arch.target, options=options.__dict__)
    except Exception as error:  # the compiler's own errors have no common type
        raise CompileError(f"{launch.name} ({launch.form}) does not compile for {arch.name}: {error}") from error
    return _report(launch, arch, done, time.perf_counter() - started)


def builds(launches: Iterable[Launch], arch: Arch) -> Iterator[Build]:
    """Each distinct launch, compiled."""
    for launch in distinct(launches, arch):
        yield build(launch, arch)


def _report(launch: Launch, arch: Arch, done: Any, seconds: float) -> Build:
    code = done.asm["amdgcn" if arch.backend == "hip" else "ptx"]
    registers, spills, scratch = _amd(code) if arch.backend == "hip" else _nvidia(done.asm["cubin"])
    units = _MATRIX["amdgcn" if arch.backend == "hip" else "ptx"].findall(code)
    dots = [line for line in done.asm["ttgir"].splitlines() if " tt.dot " in line]
    return Build(
        kernel=launch.name,
        form=launch.form,
        target=arch.name,
        tile=dict(launch.tile.blocks),
        warps=launch.tile.warps,
        stages=launch.tile.stages,
        registers=registers,
        spills=spills,
        scratch=scratch,
        shared=int(done.metadata.shared),
        products=done.asm["ttir"].count(" tt.dot "),
        unmatched=sum(line.rsplit("->")[-1].count("#blocked") > 0 for line in dots),
        matrix=len(units),
        unit=" ".join(sorted({unit.split(".")[0] for unit in units})),
        seconds=round(seconds, 2),
    )


def _amd(code: str) -> tuple[int, int, int]:
    """(registers, spills, scratch) out of the metadata at the end of AMD's assembly."""

    def number(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", code, re.M)
        return int(found[1]) if found else 0

    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    return number("vgpr_count"), spills, number("private_segment_fixed_size")


def _nvidia(cubin: bytes) -> tuple[int, int, int]:
    """(registers, spilled words, local bytes) by cuobjdump, which Triton brings."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        asked = [tool, "--dump-resource-usage", str(file)]
        text = subprocess.run(asked, capture_output=True, text=True, check=True).stdout  # noqa: S603 -- our own file
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    local = usage["STACK"] + usage["LOCAL"]
    return usage["REG"], local // 4, local
