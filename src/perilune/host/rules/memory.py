"""Strix Halo's memory: what the carve-out, GTT and the KFD heap are, and what a process can have of them."""

from __future__ import annotations

import re

from perilune.host.capacity import (
    RESERVE,
    SMALL_CARVEOUT,
    MemoryClass,
    capacity,
    classify,
    expected_heap,
    is_half,
    near,
)
from perilune.host.fixes import ByHand, Fix, NewKernel, Reboot
from perilune.host.kernel import VISIBLE
from perilune.host.rule import EVERY, STRIX, CannotTell, Finding, failed, info, passed, rule, skipped, warned
from perilune.host.rules.ttm import SMALL_UMA, limit_fix
from perilune.host.view import Host
from perilune.units import GIB, MIB, format_bytes

_BIG_BOX = 120 * GIB  # carve-out and visible memory of a 128 GB box come to 125-126 GiB
_BIG_BOX_GTT = 90 * GIB


@rule(
    "mem.vram",
    STRIX,
    why="A carve-out is lost to the system and does not help ROCm: the GPU reads all memory at one speed.",
    source="AMD35 SEED-LINEAR",
)
def vram(host: Host) -> Finding:
    found = host.vram()
    says = f"{format_bytes(found)} carved out for the GPU"
    if found <= SMALL_CARVEOUT:
        return passed(says, found)
    if found < 64 * GIB:
        return warned(says, found, SMALL_UMA)
    return warned(f"{says}: most of the box is hidden from Linux", found, SMALL_UMA)


@rule(
    "mem.gtt",
    STRIX,
    why="GTT is the memory a model really lives in here. It follows from TTM's page limit.",
    source="871 KDOC2",
)
def gtt(host: Host) -> Finding:
    found, carved, memory = host.gtt(), host.vram(), host.meminfo("MemTotal")
    says = f"{format_bytes(found)} can be mapped for the GPU"
    need = host.ask.need
    if found > 1.01 * host.page_limit():
        return warned(f"{says} in name, but TTM's limit is lower: see mem.gttsize", found)
    if need is not None and found < need:
        return failed(f"{says}, the plan needs {format_bytes(need)}", found, *limit_fix(host))
    if need is None and memory + carved >= _BIG_BOX and found < _BIG_BOX_GTT:
        return warned(f"{says}, of a 128 GB box", found, *limit_fix(host))
    return passed(says, found)


@rule(
    "mem.kfd_heap",
    STRIX,
    why="The heap KFD shows is what HIP can allocate. If it is not what V, G and L lead to, something sits in between.",
    source="8475 LKML",
)
def kfd_heap(host: Host) -> Finding:
    heap = host.heap(host.gpus()[0])
    wanted = expected_heap(host.vram(), host.gtt(), host.page_limit())
    if near(heap, wanted, 0.02):
        return passed(f"{format_bytes(heap)}, as expected", heap)
    return failed(f"{format_bytes(heap)}, where {format_bytes(wanted)} are expected: see mem.class", heap)


@rule(
    "mem.class",
    STRIX,
    why="Half of the memory, or half of what a large carve-out left, is what most hosts start with. It is a setting.",
    source="5444 TR2987 LKML SEED-LINEAR",
)
def memory_class(host: Host) -> Finding:
    heap, carved, mapped, limit = host.heap(host.gpus()[0]), host.vram(), host.gtt(), host.page_limit()
    memory = host.meminfo("MemTotal")
    found = classify(carved, mapped, limit, heap, memory)
    if found is None:
        raise CannotTell(
            f"heap {format_bytes(heap)}, VRAM {format_bytes(carved)}, GTT {format_bytes(mapped)}, limit "
            f"{format_bytes(limit)} and memory {format_bytes(memory)} are like none of the known states"
        )
    have = format_bytes(heap)
    if found is MemoryClass.OVERCOMMIT:
        says = f"overcommit: the limit of {format_bytes(limit)} is more than the {format_bytes(memory)} of memory"
        return failed(says, found, *limit_fix(host))
    if found in (MemoryClass.CAP15, MemoryClass.CAP31):
        kernel: tuple[Fix, ...] = (NewKernel(),) if host.kernel().release < VISIBLE else ()
        says = f"{found}: {have} for HIP, half of what a carve-out of {format_bytes(carved)} left over"
        return failed(says, found, *kernel, *limit_fix(host))
    if found is MemoryClass.CAP62:
        return warned(f"cap62: {have} for HIP, the kernel's default of half the memory", found, *limit_fix(host))
    if found is MemoryClass.FWRESERVED:
        return warned(
            f"fwreserved: {have} for HIP, all of it carved out in the BIOS; works, but is fixed", found, SMALL_UMA
        )
    most = capacity(carved, mapped, limit, memory)
    return passed(f"unified: {format_bytes(most)} for one GPU process", found)


@rule(
    "mem.hip_total",
    STRIX,
    why="Runtimes built between about 2026-04-14 and the end of that month cap integrated GPUs at half of the memory.",
    source="RS5167",
)
def hip_total(host: Host) -> Finding:
    text = host.optional_text("hip-total", "command")
    if text is None:
        return skipped(
            'not measured: run python -c "import torch; print(torch.cuda.mem_get_info())" where the model is to run, '
            "save what it prints, and give it with --with hip-total=FILE"
        )
    total = parse_hip_total(text)
    if total is None:
        raise CannotTell(f"{text.strip()[:60]!r} is not what torch.cuda.mem_get_info() prints")
    heap, memory = host.heap(host.gpus()[0]), host.meminfo("MemTotal")
    says = f"HIP sees {format_bytes(total)}, KFD offers {format_bytes(heap)}"
    if near(total, heap, 0.02):
        return passed(says, total)
    runtime = ByHand("use ROCm 7.2.x, or 7.14 and later, in the container or environment the model runs in")
    if is_half(total, memory) and heap > total:
        return failed(f"{says}: the runtime's cap at half of the memory", total, runtime)
    return warned(says, total, runtime)


def parse_hip_total(text: str) -> int | None:
    """Bytes from `(free, total)` as torch prints it, from a bare count, or from `Total VRAM: 98304 MiB`."""
    if match := re.search(r"(?<![\w.])(\d{1,9}) ?MiB\b", text):
        found = int(match[1]) * MIB
    elif match := re.fullmatch(r"\s*\(?\s*(?:\d{1,18}\s*,\s*)?(\d{1,18})\s*\)?\s*", text):
        found = int(match[1])
    else:
        return None
    return found if found >= GIB else None


@rule(
    "mem.reserve",
    EVERY,
    why="Weights are pinned pages: they count against the system's memory, and the page cache competes while loading.",
    source="KV65",
)
def reserve(host: Host) -> Finding:
    available, swap = host.meminfo("MemAvailable"), host.meminfo("SwapTotal")
    need = host.ask.need or 0
    plan = f", the plan needs {format_bytes(need)} and {format_bytes(RESERVE)} for the system" if need else ""
    says = f"{format_bytes(available)} available{plan}"
    if available < need + RESERVE:
        return warned(says, available, ByHand("stop what holds memory, or plan a smaller context"))
    if swap:
        return info(f"{says}; {format_bytes(swap)} of swap would hide a shortage as slowness", available)
    return passed(says, available)


@rule(
    "mem.uma_sysfs",
    STRIX,
    why="From Linux 7.0 the carve-out can be chosen without the BIOS, where the firmware offers it.",
    source="LKML",
)
def uma_sysfs(host: Host) -> Finding:
    folder = f"{host.card(host.gpus()[0])}/uma"
    options = host.optional_text(f"{folder}/carveout_options")
    if options is None:
        return skipped("this kernel or BIOS offers the carve-out in the BIOS only")
    now = host.optional_text(f"{folder}/carveout")
    choices = "; ".join(options.strip().splitlines())
    how = ByHand(f"echo INDEX | sudo tee {folder}/carveout, with the index of the smallest choice", Reboot.REBOOT)
    return info(f"choices: {choices}; now {(now or 'not shown').strip()}", None, how)


@rule(
    "mem.smi_lies",
    STRIX,
    why="amd-smi and rocm-smi report the carve-out as the GPU's memory. Nothing here is planned from what they say.",
    source="8475",
)
def smi_lies(host: Host) -> Finding:
    return info("what amd-smi and rocm-smi show as VRAM is only the carve-out (mem.vram)")


RULES = (vram, gtt, kfd_heap, memory_class, hip_total, reserve, uma_sysfs, smi_lies)
