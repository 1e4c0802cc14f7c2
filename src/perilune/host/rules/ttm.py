"""TTM's page limit: how much memory the kernel lets GPUs map, and the options that set it or only seem to."""

from __future__ import annotations

from perilune.host.capacity import (
    HEADROOM,
    PAGE,
    PAGES_PER_GIB,
    SMALL_CARVEOUT,
    is_half,
    largest_limit,
    propose_limit,
)
from perilune.host.fixes import ByHand, Fix, KernelOptions, ModuleOption, Reboot, RebuildInitramfs
from perilune.host.parse import Option, integer
from perilune.host.rule import STRIX, CannotTell, Finding, failed, info, passed, rule, skipped, warned
from perilune.host.view import Host
from perilune.units import GIB, MIB, format_bytes

SMALL_UMA = ByHand(
    "in the BIOS set the iGPU's memory (UMA frame buffer) to the smallest choice, 512 MB; then run perilune doctor "
    "again, which proposes a page limit for the memory that Linux sees by then",
    Reboot.REBOOT,
)


def limit_fix(host: Host) -> tuple[Fix, ...]:
    """The page limit for this host, set where it is set now: the command line wins over modprobe.d."""
    if host.vram() > SMALL_CARVEOUT:
        return (SMALL_UMA,)
    proposal = propose_limit(host.meminfo("MemTotal"), host.ask.need)
    if proposal.pages <= 0:
        return ()
    module = host.ttm_module()
    name = f"{module}.pages_limit"
    if host.option(name) is not None:
        return (KernelOptions(add=((name, str(proposal.pages)),)),)
    return (ModuleOption(module, "pages_limit", str(proposal.pages)),)


@rule(
    "mem.ttm",
    STRIX,
    why="The kernel lets GPUs map half of the memory unless told otherwise; too much starves the system, since "
    "eviction itself needs memory.",
    source="AMD35 LKML",
)
def page_limit(host: Host) -> Finding:
    limit, memory = host.page_limit(), host.meminfo("MemTotal")
    share = limit / memory
    says = f"{format_bytes(limit)}, {share:.0%} of the {format_bytes(memory)} that Linux sees"
    count = limit // PAGE
    if limit >= memory:
        return failed(f"page limit larger than RAM: {says}", count, *limit_fix(host))
    most = min(memory - HEADROOM, memory * 0.95)
    if 0.70 * memory <= limit <= most:
        return passed(says, count)
    if limit > most:
        wise = format_bytes(largest_limit(memory))
        return warned(f"{says}; more than {wise} leaves the system too little", count, *limit_fix(host))
    default = ", the kernel's default" if is_half(limit, memory) else ""
    return warned(says + default, count, *limit_fix(host))


def configured(host: Host, name: str) -> Option | None:
    """What the next start is told: the last on the command line, else the last in modprobe.d."""
    found = host.options(name) or host.module_options(name)
    return found[-1] if found else None


@rule(
    "mem.ttm_live",
    STRIX,
    why="A limit in modprobe.d is copied into the initramfs: until that is rebuilt, the old one stays in force.",
    source="DEDUCED",
)
def live(host: Host) -> Finding:
    name = f"{host.ttm_module()}.pages_limit"
    limit = host.page_limit() // PAGE
    wanted = configured(host, name)
    if wanted is None:
        return passed(f"nothing is configured; {limit} pages are in force", limit)
    if integer(wanted.value or "") == limit:
        return passed(f"{limit} pages, as configured", limit)
    says = f"{limit} pages are in force, {wanted.text!r} is configured"
    return warned(says, limit, RebuildInitramfs())


@rule(
    "mem.ttm_module",
    STRIX,
    why="The kernel's own driver ignores amdttm options without a word, AMD's DKMS driver ignores ttm options.",
    source="5562 AMD35",
)
def module(host: Host) -> Finding:
    right = host.ttm_module()
    wrong = "ttm" if right == "amdttm" else "amdttm"
    names = {side: (f"{side}.pages_limit", f"{side}.page_pool_size") for side in (right, wrong)}
    found = {side: (*host.options(*names[side]), *host.module_options(*names[side])) for side in names}
    if not found[wrong] or found[right]:
        return passed(f"{right} is loaded, and no other module's options are set alone", right)
    stray = found[wrong][-1]
    on_line = {option.name: option.value or "" for option in host.options(*names[wrong])}
    fixes: tuple[Fix, ...]
    if on_line:
        moved = tuple((name.replace(wrong, right, 1), value) for name, value in on_line.items())
        fixes = (KernelOptions(add=moved, drop=tuple(on_line)),)
    else:
        fixes = (ByHand(f"in /etc/modprobe.d write {right} for {wrong}", Reboot.INITRAMFS),)
    return failed(f"{stray.text!r} is set, but {right} is loaded and ignores it", right, *fixes)


@rule(
    "mem.ttm_units",
    STRIX,
    why=f"The limit counts 4 KiB pages, {PAGES_PER_GIB:,} to a GiB. Guides that count otherwise are off by 2 to 5 %, "
    "and a value in MiB is off by 256.",
    source="AMD35 DEDUCED",
)
def units(host: Host) -> Finding:
    option = host.option(f"{host.ttm_module()}.pages_limit")
    if option is None:
        return skipped("no page limit on the command line")
    count = integer(option.value or "")
    if count is None:
        return warned(f"{option.text!r} has no number", None, *limit_fix(host))
    size = count * PAGE
    if size < 8 * GIB:
        says = f"{count} pages are only {format_bytes(size)}: was another unit meant?"
        return warned(says, count, *limit_fix(host))
    return passed(f"{count} pages are {size / GIB:.2f} GiB", count)


@rule(
    "mem.gttsize",
    STRIX,
    why="From Linux 6.16 amdgpu.gttsize is deprecated: it makes GTT look larger than what TTM really allows.",
    source="5595 K98 871",
)
def gttsize(host: Host) -> Finding:
    typo = host.option("amdgpu.gtt_size")
    if typo is not None:
        drop = KernelOptions(drop=("amdgpu.gtt_size",))
        return warned(f"{typo.text!r} is no option of amdgpu, which ignores it", None, drop)
    option = configured(host, "amdgpu.gttsize")
    live = host.optional_number("/sys/module/amdgpu/parameters/gttsize")
    size = live if option is None else integer(option.value or "")
    if size is None and option is None:
        raise CannotTell("amdgpu is not loaded")
    if size is None:
        return warned(f"{option.text if option else ''!r} has no number", None, _drop(host))
    if size < 0:
        return passed("not set", size)
    limit, mapped = host.page_limit(), size * MIB
    says = f"gttsize {format_bytes(mapped)}, page limit {format_bytes(limit)}"
    if mapped > 1.01 * limit:
        return failed(f"{says}: GTT promises what TTM refuses", size, _drop(host))
    if host.kernel().release < (6, 16, 0) and mapped >= 0.99 * limit:
        return passed(f"{says}; this kernel wants both", size)
    return warned(f"{says}: deprecated", size, _drop(host))


def _drop(host: Host) -> Fix:
    if host.option("amdgpu.gttsize") is not None:
        return KernelOptions(drop=("amdgpu.gttsize",))
    return ByHand("remove gttsize from the options of amdgpu in /etc/modprobe.d", Reboot.INITRAMFS)


@rule(
    "mem.pool_size",
    STRIX,
    why="Pages kept in TTM's pool stay away from the rest of the system: fine without a desktop, not with one.",
    source="KDOC2",
)
def pool_size(host: Host) -> Finding:
    option = configured(host, f"{host.ttm_module()}.page_pool_size")
    if option is None:
        return passed("not set")
    count = integer(option.value or "")
    if count is None:
        return warned(f"{option.text!r} has no number")
    equal = ", the whole page limit" if count * PAGE == host.page_limit() else ""
    return info(f"a pool of {format_bytes(count * PAGE)}{equal}", count)


RULES = (page_limit, live, module, units, gttsize, pool_size)
