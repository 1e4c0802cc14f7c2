"""Settings of the operating system: memory policy, limits, clocks, security modules."""

from __future__ import annotations

import re

from perilune.host.distro import Family
from perilune.host.fixes import ByHand, KernelOptions, Sysctl
from perilune.host.parse import integer
from perilune.host.rule import (
    AMD,
    EVERY,
    GPU,
    INSTINCT,
    STRIX,
    CannotTell,
    Finding,
    info,
    passed,
    rule,
    skipped,
    warned,
)
from perilune.host.view import Host
from perilune.units import format_bytes

_NOFILE = 65536
_STUCK_MHZ = range(885, 901)


@rule(
    "os.numa_balancing",
    AMD,
    why="Automatic balancing unmaps pages to see who touches them; on Instinct that stalls transfers from the host.",
    source="SGLDOC",
)
def numa_balancing(host: Host) -> Finding:
    found = host.optional_number("/proc/sys/kernel/numa_balancing")
    if found is None:
        return passed("not built into this kernel") if host.target in INSTINCT else info("not built into this kernel")
    if host.target in STRIX:
        return info(f"{found}; one memory node, so it does nothing", found)
    if found == 0:
        return passed("off", found)
    return warned(f"on ({found})", found, Sysctl("kernel.numa_balancing", "0"))


@rule(
    "os.numa_nodes",
    INSTINCT,
    why="A rank pinned to the other socket sends every byte across the link between them.",
    source="DEDUCED",
)
def numa_nodes(host: Host) -> Finding:
    nodes = host.names("/sys/devices/system/node", r"node\d+")
    homes = []
    for gpu in host.gpus():
        if gpu.address is None:
            raise CannotTell(f"{gpu.path}: no location_id")
        homes.append(host.number(f"/sys/bus/pci/devices/{gpu.address}/numa_node"))
    says = f"{len(nodes)} memory nodes; GPUs at {' '.join(map(str, homes))}"
    if len(nodes) > 1 and any(home < 0 for home in homes):
        hint = ByHand("in the BIOS let each socket report its PCI devices' node; until then pin ranks by hand")
        return warned(f"{says}: -1 is unknown", len(nodes), hint)
    return info(says, len(nodes))


@rule(
    "os.thp",
    EVERY,
    why="Transparent huge pages make large mappings cheaper to look up; `never` gives that away.",
    source="DEDUCED",
)
def thp(host: Host) -> Finding:
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    text = host.optional_text(path)
    if text is None:
        return skipped("not built into this kernel")
    match = re.search(r"\[(always|madvise|never)\]", text)
    if match is None:
        raise CannotTell(f"{path}: {text.strip()[:40]!r} marks no choice")
    if match[1] == "never":
        return warned("never", "never", ByHand(f"echo madvise | sudo tee {path}"))
    return passed(match[1], match[1])


@rule(
    "os.hugepages",
    STRIX,
    why="Reserved huge pages are lost to GTT, and no source claims that they help here.",
    source="DEDUCED",
)
def hugepages(host: Host) -> Finding:
    count, size = host.meminfo("HugePages_Total"), host.meminfo("Hugepagesize")
    taken, memory = count * size, host.meminfo("MemTotal")
    says = f"{format_bytes(taken)} reserved"
    if taken > 0.05 * memory:
        fix = KernelOptions(drop=("hugepages",)) if host.option("hugepages") else Sysctl("vm.nr_hugepages", "0")
        return warned(says, count, fix)
    return passed(says, count)


@rule(
    "os.ulimits",
    GPU,
    why="ROCm 7.14 opens a file per allocation: a process out of file descriptors reports that it is out of memory.",
    source="6661",
)
def ulimits(host: Host) -> Finding:
    text = host.text("/proc/self/limits")
    files, locked = _soft_limit(text, "Max open files"), _soft_limit(text, "Max locked memory")
    found = "unlimited" if files is None else files
    short = ["open files"] if files is not None and files < _NOFILE else []
    if locked is not None and host.in_container():
        short.append("locked memory")
    if short:
        how = "ulimit -n 65536 before the start; in a container --ulimit nofile=65536:65536 --ulimit memlock=-1"
        return warned(f"{found} open files: too few {' and '.join(short)}", found, ByHand(how))
    return passed(f"{found} open files", found)


def _soft_limit(text: str, name: str) -> int | None:
    """The first of a line's two limits; None if unlimited."""
    for line in text.splitlines():
        if line.startswith(name):
            words = line[len(name) :].split()
            if words and words[0] == "unlimited":
                return None
            found = integer(words[0]) if words else None
            if found is not None:
                return found
    raise CannotTell(f"/proc/self/limits: no {name.lower()}")


@rule(
    "os.power",
    STRIX,
    why="A GPU that stays at its idle clock under load is slow; the tuned profile gives 3 % of bandwidth.",
    source="LHL HOG",
)
def power(host: Host) -> Finding:
    card = host.card(host.gpus()[0])
    text = host.text(f"{card}/pp_dpm_sclk", quiet=True)
    now = re.search(r"^\d+: (\d+)Mhz \*", text, re.MULTILINE)
    host.saw(f"{card}/pp_dpm_sclk", now[0] if now else "(no clock is marked)")
    if now is None:
        raise CannotTell(f"{card}/pp_dpm_sclk marks no clock")
    busy = host.optional_number(f"{card}/gpu_busy_percent")
    clock = int(now[1])
    if busy is not None and busy >= 50 and clock in _STUCK_MHZ:
        how = ByHand(f"echo high | sudo tee {card}/power_dpm_force_performance_level")
        return warned(f"{clock} MHz while {busy} % busy", clock, how)
    profile = (host.optional_text("/etc/tuned/active_profile") or "").strip()
    if profile != "accelerator-performance":
        how = ByHand("sudo tuned-adm profile accelerator-performance")
        return info(f"{clock} MHz now; tuned profile {profile or 'not set'}", clock, how)
    return passed(f"{clock} MHz now; tuned profile {profile}", clock)


@rule(
    "os.selinux",
    AMD,
    why="SELinux keeps containers from device nodes, whatever --device says, unless this boolean is on.",
    source="FIXTURES",
)
def selinux(host: Host) -> Finding:
    if host.family() not in (Family.FEDORA, None):
        return skipped("not a distribution that enforces SELinux")
    enforcing = host.optional_number("/sys/fs/selinux/enforce")
    if not enforcing:
        return skipped("SELinux does not enforce")
    path = "/sys/fs/selinux/booleans/container_use_devices"
    text = host.text(path)
    match = re.fullmatch(r"([01]) [01]\s*", text)
    if match is None:
        raise CannotTell(f"{path}: {text.strip()[:20]!r} is no boolean")
    if match[1] == "1":
        return passed("containers may use devices", 1)
    return warned("containers may not use devices", 0, ByHand("sudo setsebool -P container_use_devices on"))


@rule(
    "os.apparmor_userns",
    AMD,
    why="Ubuntu 24.04 denies user namespaces to programs without a profile, as enroot and rootless containers.",
    source="IX",
)
def apparmor(host: Host) -> Finding:
    found = host.optional_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if found is None:
        return skipped("not restricted by this kernel")
    if found == 0:
        return passed("not restricted", 0)
    return info("restricted: enroot and rootless containers need a profile", found)


RULES = (numa_balancing, numa_nodes, thp, hugepages, ulimits, power, selinux, apparmor)
