"""How much of a Strix Halo box a GPU process can have: classes, page arithmetic, and a page limit for a plan.

Two numbers look like pools and are not: V, what the BIOS carved out for the GPU, and G, what the GPU may map of the
system's memory (GTT), which is TTM's page limit L unless `amdgpu.gttsize` says otherwise. Since Linux 6.16.9 the driver
offers compute whichever is larger, so a process has one of them and never their sum. M is the memory Linux sees. H is
the heap KFD shows, which is what HIP can allocate. Sources: ROCm issue 5444, the amd-gfx list, AMD's RDNA 3.5 page.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from perilune.units import GIB, format_bytes

PAGE = 4096
PAGES_PER_GIB = GIB // PAGE  # 262,144
SMALL_CARVEOUT = 8 * GIB  # the smallest BIOS choice is seen as 512 MiB, 1, 2 or 4 GiB
RESERVE = 4 * GIB  # for the operating system beside a plan
DEFAULT_LIMIT = 110 * GIB  # AMD's choice for long contexts; its playbook's most is 120
HEADROOM = 6 * GIB  # below this much beside the limit the system swaps or kills (observed at 2 GiB)


class MemoryClass(StrEnum):
    CAP15 = "cap15"
    CAP31 = "cap31"
    CAP62 = "cap62"
    FWRESERVED = "fwreserved"
    UNIFIED = "unified"
    OVERCOMMIT = "overcommit"


def pages(size: int) -> int:
    """Whole 4 KiB pages in `size` bytes."""
    return size // PAGE


def near(a: int, b: float, share: float) -> bool:
    """Whether `a` is within `share` of `b`."""
    return abs(a - b) <= share * b


def is_half(size: int, memory: int) -> bool:
    """Whether `size` is the kernel's default, half of the memory: 48 to 52 %."""
    return near(size, memory / 2, 0.04)


def capacity(vram: int, gtt: int, limit: int, memory: int, reserve: int = RESERVE) -> int:
    """Bytes one GPU process can have. VRAM and GTT are never added."""
    return vram if gtt <= vram else max(0, min(gtt, limit, memory - reserve))


def expected_heap(vram: int, gtt: int, limit: int) -> int:
    """What KFD should show from Linux 6.16.9 on."""
    return vram if gtt <= vram else min(gtt, limit)


def classify(vram: int, gtt: int, limit: int, heap: int, memory: int) -> MemoryClass | None:
    """Which of the known states a host is in; None if it is like none of them.

    `cap15` and `cap31` are one fault, half of what a large carve-out left over, with 96 and 64 GiB carved out.
    """
    if limit > memory:
        return MemoryClass.OVERCOMMIT
    if is_half(heap, memory) and not (gtt <= vram and near(heap, vram, 0.02)):
        if vram >= 90 * GIB:
            return MemoryClass.CAP15
        return MemoryClass.CAP31 if vram >= 60 * GIB else MemoryClass.CAP62
    if near(heap, vram, 0.02):
        return MemoryClass.FWRESERVED
    return MemoryClass.UNIFIED if near(heap, min(gtt, limit), 0.02) else None


def largest_limit(memory: int) -> int:
    """The most that leaves the system enough to live and to evict with: min(0.95 M, M - 6 GiB), in whole GiB."""
    return max(0, min(memory * 95 // 100, memory - HEADROOM) // GIB * GIB)


@dataclass(frozen=True)
class Proposal:
    """A page limit of `pages`, which is `size` bytes. `fits` says whether the plan asked about fits below it."""

    pages: int
    size: int
    fits: bool
    because: str


def propose_limit(memory: int, plan: int | None = None) -> Proposal:
    """The `ttm.pages_limit` for a box where Linux sees `memory` bytes and a plan needs `plan` bytes, if one is stated.

    A limit reserves nothing, so it is never below the default, and never so high that the system starves.
    """
    most = largest_limit(memory)
    wanted = max(DEFAULT_LIMIT, -(-(plan or 0) // GIB) * GIB)
    size, fits = min(wanted, most), plan is None or plan <= most
    if not fits:
        because = f"the plan's {format_bytes(plan or 0)} are more than {format_bytes(most)}, the most that is safe"
    elif wanted > most:
        because = f"the most that is safe with {format_bytes(memory)}: 95 %, and {HEADROOM // GIB} GiB left over"
    else:
        because = "what the plan needs" if wanted > DEFAULT_LIMIT else "AMD's value for long contexts"
    return Proposal(pages(size), size, fits, f"{size // GIB} GiB x {PAGES_PER_GIB}; {because}")
