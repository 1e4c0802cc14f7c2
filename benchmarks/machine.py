"""What this machine can do at best, measured: reading memory, and the products kernels are built from."""

from __future__ import annotations

import mmap
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perilune.ops.native import Native


@dataclass(frozen=True)
class Machine:
    """`variant` names perilune's kernels here. Rates in GB/s, GFLOP/s and GOP/s on `threads` threads."""

    name: str
    variant: str
    threads: int
    read: float
    update: float
    float32: float
    bfloat16: float
    int8: float

    @property
    def product(self) -> float:
        """The faster product of floats, in GFLOP/s."""
        return max(self.float32, self.bfloat16)

    @property
    def fastest(self) -> float:
        """The fastest product of all, in operations per nanosecond."""
        return max(self.product, self.int8)

    @property
    def line(self) -> str:
        rates = f"fp32 {self.float32:.0f}, bf16 {self.bfloat16:.0f} GFLOP/s, int8 {self.int8:.0f} GOP/s"
        moves = f"read {self.read:.1f}, update {self.update:.1f} GB/s"
        return f"{self.name}, {self.variant}, {self.threads} threads: {moves}, {rates}"


def measure_machine(seconds: float, variant: str | None = None) -> Machine:
    """Read bandwidth by summing 256 MiB, update (read and written) by scaling it, products by torch's own at 1024.

    Each is the best of `seconds` of trying: what another tenant of the machine takes is no limit of it.
    """
    if variant is None:
        native = Native.load()
        variant = native if isinstance(native, str) else native.name
    big, n = _large(256 << 20), 1024
    floats = torch.randn(n, n)
    halves, codes = floats.bfloat16(), torch.randint(-127, 128, (n, n), dtype=torch.int8)

    def rate(product: Callable[[], object]) -> float:
        return 2 * n**3 / times(product, seconds)[0] / 1e9

    return Machine(
        name=processor_name(),
        variant=variant,
        threads=torch.get_num_threads(),
        read=big.nbytes / times(big.sum, seconds)[0] / 1e9,
        update=2 * big.nbytes / times(lambda: big.mul_(1.0), seconds)[0] / 1e9,
        float32=rate(lambda: floats @ floats),
        bfloat16=rate(lambda: halves @ halves),
        int8=rate(lambda: torch._int_mm(codes, codes.t())),
    )


def _large(nbytes: int) -> Tensor:
    """Ones, in large pages where the system gives them: in small ones a read is a fifth slower."""
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)


def times(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, sorted: as many as fit the time, at least three after one to warm up."""
    call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return sorted(found)


def processor_name(proc: Path = Path("/proc")) -> str:
    """The processor as Linux calls it, else as Python does."""
    names = [value for key, value in _cpuinfo(proc) if key == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def physical_cores(proc: Path = Path("/proc")) -> int:
    """Cores without their second threads, as Linux lists them; no more than torch would use, which knows of limits."""
    cores: set[tuple[str, str]] = set()
    package = ""
    for key, value in _cpuinfo(proc):
        if key == "physical id":
            package = value
        elif key == "core id":
            cores.add((package, value))
    return min(len(cores), torch.get_num_threads()) or torch.get_num_threads()


def _cpuinfo(proc: Path) -> Iterator[tuple[str, str]]:
    """(key, value) of every line; nothing on other systems."""
    file = proc / "cpuinfo"
    for line in file.read_text().splitlines() if file.is_file() else ():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()
