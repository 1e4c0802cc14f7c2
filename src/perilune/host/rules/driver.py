"""The amdgpu driver: what it logged, how it was loaded, where it comes from."""

from __future__ import annotations

import re

from perilune.host.fixes import ByHand, Firmware, Fix, KernelOptions, Reboot
from perilune.host.rule import AMD, STRIX, CannotTell, Finding, Target, failed, info, passed, rule, warned
from perilune.host.view import Host, lines_with

# What the kernel logs -> (whether it is a failure, what it means, what to do).
_RESTART = ByHand("restart the host; the queue does not come back", Reboot.REBOOT)
_FAULT = Firmware()
_MESSAGES: tuple[tuple[str, bool, str, tuple[Fix, ...]], ...] = (
    (r"MES ring buffer is full", True, "the scheduler's queue is stuck", (_RESTART,)),
    (r"GCVM_L2_PROTECTION_FAULT|page fault", True, "the GPU read a page that is not mapped: see fw.mes", (_FAULT,)),
    (r"\*ERROR\* ring .*timeout", True, "a ring of the GPU hung", (_RESTART,)),
    (r"MES failed to respond", False, "the scheduler was late; gone from Linux 6.18.4", ()),
    (r"AMD-Vi: Unknown option", False, "an IOMMU option is misspelt: see boot.iommu", ()),
    (r"unknown parameter 'gtt_size'", False, "the option is called gttsize: see mem.gttsize", ()),
    (r"GTT size has been set as", False, "GTT and TTM disagree: see mem.gttsize", ()),
)


@rule(
    "drv.dmesg",
    AMD,
    why="The driver says in the kernel's log what later looks like a wrong answer or a crash of the model.",
    source="5724 K66 5595",
)
def dmesg(host: Host) -> Finding:
    found = host.reading("command", "dmesg", quiet=True)
    if found.text is None:
        host.saw("command dmesg", f"({found.problem})")
        raise CannotTell("only root may read the kernel's log here: sudo dmesg > FILE, then --with dmesg=FILE")
    header = found.text.split("\n", 1)[0]
    host.saw("command dmesg", header)
    hits = [entry for entry in _MESSAGES if lines_with(found.text, entry[0])]
    if not hits and not re.fullmatch(r"# \d+ lines, [1-9]\d* of amdgpu", header):
        raise CannotTell("the kernel's log has nothing of amdgpu: another machine's, or overwritten since the start")
    if not hits:
        return passed("none of the messages that point to a fault")
    for pattern, _, _, _ in hits:
        host.saw("command dmesg", lines_with(found.text, pattern)[-1])
    says = "; ".join(meaning for _, _, meaning, _ in hits)
    fixes = tuple(dict.fromkeys(fix for *_, some in hits for fix in some))
    return failed(says, None, *fixes) if any(bad for _, bad, _, _ in hits) else warned(says, None, *fixes)


_PARAMETERS = "/sys/module/amdgpu/parameters"


@rule(
    "drv.params",
    AMD,
    why="Options of the driver that circulate as cures and are none: most belong to other chips or older kernels.",
    source="K98 5724",
)
def params(host: Host) -> Finding:
    found = {name: host.optional_number(f"{_PARAMETERS}/{name}") for name in ("noretry", "cwsr_enable")}
    xnack = host.option("amdgpu.xnack")
    if found == {"noretry": None, "cwsr_enable": None}:
        raise CannotTell("amdgpu is not loaded")
    names = [f"amdgpu.{name}" for name, value in found.items() if value == 0]
    odd = [f"{name}=0" for name in names]
    if xnack is not None:
        names.append("amdgpu.xnack")
        odd.append(f"{xnack.text}, which amdgpu does not know")
    if not odd:
        return passed("no option that circulates as a cure is set")
    on_line = tuple(name for name in names if host.option(name) is not None)
    fixes: tuple[Fix, ...] = (KernelOptions(drop=on_line),) if on_line else ()
    if len(on_line) < len(names):
        elsewhere = ", ".join(name for name in names if name not in on_line)
        fixes += (ByHand(f"remove {elsewhere} from /etc/modprobe.d", Reboot.INITRAMFS),)
    return warned(", ".join(odd), None, *fixes)


@rule(
    "drv.dkms",
    AMD,
    why="AMD recommends the kernel's own driver on Ryzen; its DKMS driver ignores the options of ttm.",
    source="AMD35",
)
def dkms(host: Host) -> Finding:
    host.names("/sys/module/amdgpu", r"parameters|version")
    version = host.optional_text("/sys/module/amdgpu/version")
    if version is None:
        return passed("the kernel's own driver", "inbox")
    says = f"AMD's DKMS driver {version.strip()}"
    if host.target is not Target.STRIX_HALO:
        return passed(says, version.strip())
    return warned(says, version.strip(), ByHand("uninstall amdgpu-dkms", Reboot.INITRAMFS))


@rule(
    "drv.npu",
    STRIX,
    why="The NPU needs an IOMMU and, with newer firmware, Linux 7.0. Models here use the GPU only.",
    source="871 NIX",
)
def npu(host: Host) -> Finding:
    loaded = host.optional_names("/sys/module/amdxdna", r"version|parameters|refcnt") is not None
    return info("the NPU's driver is loaded" if loaded else "the NPU's driver is not loaded; nothing here needs it")


RULES = (dmesg, params, dkms, npu)
