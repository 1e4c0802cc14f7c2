"""The kernel, the BIOS and ROCm: versions that are known to work together, and those known not to."""

from __future__ import annotations

import re

from perilune.host.fixes import ByHand, NewKernel, Reboot
from perilune.host.kernel import FIXED, VISIBLE, Kernel, upload_is_fixed
from perilune.host.parse import version
from perilune.host.rule import (
    AMD,
    STRIX,
    CannotTell,
    Finding,
    Status,
    Target,
    failed,
    info,
    passed,
    rule,
    skipped,
    warned,
)
from perilune.host.view import Host

_ROCM = ByHand("use a container or wheels with ROCm 7.2.4, or 7.14 and later")


def kernel_status(host: Host) -> Status:
    """PASS with both KFD fixes, WARN with the memory visible but without them, FAIL below."""
    kernel = host.kernel()
    if kernel.backport is not None:
        return _backport(host, kernel)
    if kernel.release < VISIBLE:
        return Status.FAIL
    if kernel.release < FIXED or (kernel.candidate and kernel.release < (7, 0, 0)):
        return Status.WARN
    return Status.PASS


def _backport(host: Host, kernel: Kernel) -> Status:
    """ABI 6.17.0-19 was uploaded more than once; only the package's version says which upload this is."""
    if kernel.backport == "OEM" or (kernel.abi or 0) > 19:
        return Status.PASS
    fixed = upload_is_fixed(host.text("dpkg-kernel", "command"))
    if fixed is None:
        raise CannotTell("which upload of 6.17.0-19 this is cannot be told; 19.19~24.04.2 and later are fixed")
    return Status.PASS if fixed else Status.WARN


@rule(
    "sys.kernel",
    STRIX,
    why="Before 6.16.9 HIP sees 15.5 GB, or half of the memory; before 6.18.4 two fixes are missing, to the creation "
    "of queues and to the memory reported as available.",
    source="AMD35 KLC",
)
def kernel(host: Host) -> Finding:
    found = host.kernel()
    status = kernel_status(host)
    if status is Status.PASS:
        backport = f", Ubuntu's {found.backport} series with the fixes" if found.backport else ""
        return passed(f"{found.text}{backport}", found.text)
    if status is Status.WARN:
        return warned(f"{found.text}: before 6.18.4, without AMD's two fixes", found.text, NewKernel())
    return failed(f"{found.text}: before 6.16.9, HIP sees a part of the memory only", found.text, NewKernel())


@rule(
    "sys.bios",
    STRIX,
    why="Early BIOS versions of some boards fault under ROCm or offer no small carve-out.",
    source="SEED-LINEAR 6182",
)
def bios(host: Host) -> Finding:
    vendor, product, found = (
        host.text(f"/sys/class/dmi/id/{name}").strip() for name in ("sys_vendor", "product_name", "bios_version")
    )
    if not (vendor and product and found):
        raise CannotTell("the BIOS does not name itself")
    update = ByHand("sudo fwupdmgr update, or the vendor's tool", Reboot.REBOOT)
    says = f"{product}, BIOS {found}"
    number = version(re.sub(r"^[^0-9]*", "", found))
    if "framework" in vendor.lower() and "desktop" in product.lower():
        if number is None:
            raise CannotTell(f"BIOS version {found!r} has no number")
        return passed(says, found) if number >= (3, 5) else warned(f"{says}, older than 3.05", found, update)
    if "bosgame" in vendor.lower() and "m5" in product.lower() and number == (1, 7):
        return warned(f"{says}: memory critical errors are reported with it and not solved", found, update)
    return info(f"{says}: nothing is known against it", found)


@rule(
    "sys.rocm",
    AMD,
    why="ROCm knows a chip from some version on. A host without ROCm is fine where the model runs in a container.",
    source="VLLMROCM",
)
def rocm(host: Host) -> Finding:
    found = host.rocm()
    if found is None:
        return skipped("no ROCm on the host or in this environment; a container brings its own")
    least = {Target.STRIX_HALO: (7, 0, 2), Target.MI355X: (7, 0)}.get(host.target, (0,))
    text = ".".join(map(str, found))
    if found < least:
        return failed(f"ROCm {text}, before {'.'.join(map(str, least))}", text, _ROCM)
    return passed(f"ROCm {text}", text)


# Lines of ROCm that crash on gfx1151 with a fixed kernel. Others are named where they pass; the rest is not known.
_BAD_LINES = ((6, 4), (7, 1), (7, 9), (7, 10))


@rule(
    "sys.rocm_kernel",
    STRIX,
    why="ROCm and the KFD driver changed together: some pairs crash in the HSA runtime before the first kernel runs.",
    source="AMD35 FIXTURES",
)
def rocm_kernel(host: Host) -> Finding:
    found = host.rocm()
    if found is None:
        return skipped("no ROCm on the host or in this environment")
    line, text = found[:2], ".".join(map(str, found))
    kernel = host.kernel()
    new = kernel_status(host) is Status.PASS
    says = f"ROCm {text} on {kernel.text}"
    if line in _BAD_LINES:
        return failed(says, text, _ROCM) if new else warned(f"{says}: an old pair", text, _ROCM, NewKernel())
    if line == (7, 2):
        good = new or found >= (7, 2, 1)
        return passed(says, text) if good else failed(f"{says}: 7.2.0 wants 6.18.4", text, NewKernel())
    if line in ((7, 11), (7, 12)) or found >= (7, 14):
        return passed(says, text)
    return warned(f"{says}: not among the pairs that are known to work", text, _ROCM)


RULES = (kernel, bios, rocm, rocm_kernel)
