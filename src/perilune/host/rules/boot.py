"""Options on the kernel's command line beside those about memory."""

from __future__ import annotations

from perilune.host.fixes import KernelOptions
from perilune.host.rule import AMD, INSTINCT, STRIX, Finding, info, passed, rule, warned
from perilune.host.view import Host

_PASSTHROUGH = KernelOptions(add=(("iommu", "pt"),))


@rule(
    "boot.iommu",
    AMD,
    why="On Instinct a translating IOMMU slows transfers between GPUs. On Strix Halo off gives 5 to 16 % of prefill "
    "and 2 % of decoding, and takes away the NPU and device isolation; pt measured the same as translation.",
    source="K66 871 SGLDOC",
)
def iommu(host: Host) -> Finding:
    options = host.options("amd_iommu", "iommu", "iommu.passthrough")
    words = {f"{option.name}={part}" for option in options for part in (option.value or "").split(",")}
    wrong = sorted(words & {"amd_iommu=pt", "amd_iommu=on"})
    if wrong:
        fix = KernelOptions(drop=("amd_iommu",), add=(("iommu", "pt"),) if host.target not in STRIX else ())
        return warned(f"{', '.join(wrong)} is no option of the kernel, which ignores it", wrong[0], fix)
    now = " ".join(option.text for option in options)
    if host.target in STRIX:
        return info(f"{now or 'the default, translation'}; any choice works", now)
    if words & {"iommu=pt", "iommu.passthrough=1", "amd_iommu=off", "iommu=off"}:
        return passed(now, now)
    return warned(f"{now or 'not set'}: the IOMMU translates", now, _PASSTHROUGH)


@rule(
    "boot.realloc",
    INSTINCT,
    why="Without it the kernel may move the GPUs' large address windows at start and lose some.",
    source="SGLDOC",
)
def realloc(host: Host) -> Finding:
    words = [part for option in host.options("pci") for part in (option.value or "").split(",") if part]
    if "realloc=off" in words:
        return passed("pci=realloc=off")
    others = [word for word in words if not word.startswith("realloc")]
    fix = KernelOptions(add=(("pci", ",".join([*others, "realloc=off"])),))
    return warned("pci=realloc=off is not set", None, fix)


RULES = (iommu, realloc)
