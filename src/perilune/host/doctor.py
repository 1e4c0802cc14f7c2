"""Runs every rule that applies to a host and collects the verdicts. Changes nothing, needs no root, never raises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from perilune.host.distro import Family, family_of
from perilune.host.fixes import strongest
from perilune.host.kfd import NODES, KfdNode
from perilune.host.parse import integer
from perilune.host.rule import GFX, CannotTell, Check, Finding, Rule, Status, Target
from perilune.host.rules import boot, containers, driver, environment, firmware, gpu, kernel, memory, other, ttm, tuning
from perilune.host.sysroot import Sysroot
from perilune.host.view import Ask, Host

# In the order in which fixes are best made: a newer kernel and BIOS first, then memory, then the rest.
RULES: tuple[Rule, ...] = (
    *kernel.RULES,
    *firmware.RULES,
    *gpu.RULES,
    *containers.RULES,
    *memory.RULES,
    *ttm.RULES,
    *driver.RULES,
    *boot.RULES,
    *tuning.RULES,
    *environment.RULES,
    *other.RULES,
)
_WORST_FIRST = (Status.FAIL, Status.WARN, Status.UNKNOWN, Status.INFO, Status.PASS, Status.SKIP)
_PCI = {(0x1002, 0x1586): Target.STRIX_HALO, (0x1002, 0x74A1): Target.MI300X}
_PCI |= {(0x1002, device): Target.MI355X for device in (0x75A0, 0x75A3, 0x75B0)}


@dataclass(frozen=True)
class Report:
    """Every check of one host, worst first. `chosen` says why this target; `family` is None for other distributions."""

    target: Target
    chosen: str
    family: Family | None
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Status:
        """The worst of all checks; `pass` if none is worse than info."""
        worst = self.checks[0].status if self.checks else Status.UNKNOWN
        return worst if worst in (Status.FAIL, Status.WARN, Status.UNKNOWN) else Status.PASS

    @property
    def exit_status(self) -> int:
        """2 with a failure; 1 with a warning, or with what could not be told; else 0."""
        return {Status.FAIL: 2, Status.WARN: 1, Status.UNKNOWN: 1}.get(self.verdict, 0)


def diagnose(root: Sysroot, target: Target | None = None, ask: Ask | None = None) -> Report:
    """Examine a host for `target`, or for what it looks like; `ask` is what the user has in mind for it."""
    found, chosen = (target, "as asked") if target is not None else choose_target(root)
    checks = [examine(rule, root, found, ask or Ask()) for rule in RULES if found in rule.targets]
    checks.sort(key=lambda check: _WORST_FIRST.index(check.status))
    return Report(found, chosen, family_of(root.read("file", "/etc/os-release").text or ""), tuple(checks))


def examine(rule: Rule, root: Sysroot, target: Target, ask: Ask) -> Check:
    """One rule on one host. Whatever goes wrong inside is a verdict: unknown."""
    host = Host(root, target, ask)
    try:
        finding = rule.look(host)
    except CannotTell as problem:
        finding = Finding(Status.UNKNOWN, str(problem))
    except Exception as error:
        finding = Finding(Status.UNKNOWN, f"the rule itself failed, please report it: {type(error).__name__}: {error}")
    return Check(
        rule.id,
        finding.status,
        finding.says,
        finding.value,
        tuple(host.seen),
        finding.why or rule.why,
        finding.fixes,
        strongest(finding.fixes),
        rule.sources,
    )


def choose_target(root: Sysroot) -> tuple[Target, str]:
    """By what KFD lists, then by PCI ids where no driver is loaded, then NVIDIA's driver, else the processor."""
    gfx = [node.gfx for node in _gpu_nodes(root)]
    for target, name in GFX.items():
        if name in gfx:
            return target, f"KFD lists {gfx.count(name)} x {name}"
    devices = set(_pci_devices(root))
    for ids, target in _PCI.items():
        if ids in devices:
            return target, f"PCI lists {ids[0]:04x}:{ids[1]:04x}, KFD does not"
    if root.read("file", "/proc/driver/nvidia/version").text is not None:
        return Target.NVIDIA, "NVIDIA's driver is loaded"
    if any(vendor == 0x10DE for vendor, _ in devices):
        return Target.NVIDIA, "PCI lists an NVIDIA GPU"
    other_gpu = f"no rules are known for {gfx[0]}; " if gfx else ""
    return Target.CPU, f"{other_gpu}no GPU that perilune knows"


def _gpu_nodes(root: Sysroot) -> Iterable[KfdNode]:
    for name in root.names(NODES, r"\d+").names:
        path = f"{NODES}/{name}/properties"
        node = KfdNode.parse(path, root.read("file", path).text or "")
        if node.is_gpu:
            yield node


def _pci_devices(root: Sysroot) -> Iterable[tuple[int, int]]:
    """(vendor, device) of AMD's and NVIDIA's display devices and accelerators."""
    folder = "/sys/bus/pci/devices"
    for address in root.names(folder, r"[0-9a-f:.]+").names:
        kind = integer(root.read("file", f"{folder}/{address}/class").text or "")
        if kind is None or kind >> 16 not in (0x03, 0x12):
            continue
        ids = [integer(root.read("file", f"{folder}/{address}/{name}").text or "") for name in ("vendor", "device")]
        if ids[0] is not None and ids[1] is not None:
            yield ids[0], ids[1]
