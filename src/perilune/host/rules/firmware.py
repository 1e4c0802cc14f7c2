"""Firmware that runs on the GPU itself: the scheduler of Strix Halo (MES), the compute processors of Instinct (MEC)."""

from __future__ import annotations

from perilune.host.distro import Family
from perilune.host.firmware import (
    MEC_FLOOR,
    MES_BAD,
    amd_smi_versions,
    mes_is_good,
    no_scratch_reclaim,
    parse_mec,
    parse_mes,
    rocm_smi_versions,
    rocminfo_versions,
)
from perilune.host.fixes import ByHand, Firmware, Reboot
from perilune.host.kfd import KfdNode
from perilune.host.parse import package_date
from perilune.host.rule import GFX, INSTINCT, STRIX, CannotTell, Finding, failed, info, passed, rule, skipped, warned
from perilune.host.view import Host, lines_with

_GOOD_DATE, _BAD_DATE = 20260110, 20251125
_OVERRIDE = "/lib/firmware/updates/amdgpu"
_FLAG = ByHand("export HSA_NO_SCRATCH_RECLAIM=1 where the model runs; it holds scratch memory and never gives it back")
_BUNDLE = ByHand("update the firmware bundle (IFWI) with the server vendor's tool", Reboot.REBOOT)


def mes_version(host: Host) -> int:
    """The MES version that is loaded: from the driver, then for root from debugfs, then from rocm-smi."""
    card = host.card(host.gpus()[0])
    text = host.reading("file", f"{card}/fw_version/mes_fw_version").text
    found = None if text is None else parse_mes(text)
    if found is None:
        found = _mes_of_debugfs(host)
    if found is None:
        text = host.reading("command", "rocm-smi-showfw", quiet=True).text or ""
        shown = rocm_smi_versions(text, "MES")
        host.saw("command rocm-smi --showfw", f"MES {shown}" if shown else "(no MES)")
        found = parse_mes(next(iter(shown.values()), ""))
    if found is None:
        raise CannotTell(
            "the loaded MES version is for root only: sudo grep MES /sys/kernel/debug/dri/*/amdgpu_firmware_info"
        )
    return found


def _mes_of_debugfs(host: Host) -> int | None:
    folder = "/sys/kernel/debug/dri"
    for name in host.root.names(folder, r"\d+|[0-9a-f:.]+").names:
        path = f"{folder}/{name}/amdgpu_firmware_info"
        for line in lines_with(host.root.read("file", path).text or "", r"^MES feature version"):
            host.saw(path, line)
            return parse_mes(line.rpartition(":")[2])
    return None


@rule(
    "fw.mes",
    STRIX,
    why=f"MES 0x{MES_BAD:x} breaks page tables: Memory access fault by GPU node-1, page not present, in any workload.",
    source="5724",
)
def mes(host: Host) -> Finding:
    found = mes_version(host)
    good = mes_is_good(found)
    says = f"MES 0x{found:x} is loaded"
    if good:
        return passed(says, found)
    if good is None:
        return warned(f"{says}, a version nobody has reported on", found, Firmware())
    override = ByHand(
        "if no newer package is there: gc_11_5_1_mes_2.bin of linux-firmware 3d5c8135 (MES 0x80) into "
        f"{_OVERRIDE}/, then rebuild the initramfs",
        Reboot.INITRAMFS,
    )
    return failed(f"{says}, the broken one", found, Firmware(), override)


_PACKAGE_QUERY = {
    Family.DEBIAN: "dpkg-firmware",
    Family.FEDORA: "rpm-firmware",
    Family.ARCH: "pacman-firmware",
}


@rule(
    "fw.pkg",
    STRIX,
    why="linux-firmware 20251125 shipped the broken MES; the package is what the next initramfs will load.",
    source="5724 KLC HOG",
)
def package(host: Host) -> Finding:
    if host.in_container():
        return skipped("in a container, whose packages are not the host's")
    family = host.family()
    if family is None:
        raise CannotTell("not a distribution whose firmware package is known")
    text = host.text(_PACKAGE_QUERY[family], "command")
    lines = lines_with(text, "amd-gpu-firmware|linux-firmware-amdgpu") or text.splitlines()
    date = package_date(lines[0]) if lines else None
    if date is None:
        raise CannotTell(f"no date in {text.strip()[:60]!r}")
    says = f"firmware package of {date}"
    if family is Family.DEBIAN and "ubuntu" in text:
        # Ubuntu's date is that of the snapshot its updates were put on top of: it proves nothing.
        loaded = mes_version(host)
        return info(f"{says}, a base snapshot; what counts is that MES 0x{loaded:x} is loaded", date)
    if date == _BAD_DATE:
        return failed(f"{says}, the one with the broken MES", date, Firmware())
    if date >= _GOOD_DATE:
        return passed(says, date)
    if date > _BAD_DATE:
        return warned(f"{says}, before 20260110", date, Firmware())
    return info(f"{says}, older than the broken one; fw.mes says what is loaded", date)


@rule(
    "fw.file",
    STRIX,
    why="A file below updates/ wins over the distribution's, and hides every later package.",
    source="5724",
)
def files(host: Host) -> Finding:
    if host.in_container():
        return skipped("in a container, whose firmware files are not the host's")
    host.names("/lib/firmware/amdgpu", r"gc_11_5_1_mes.*\.bin(\.(zst|xz))?")  # there must be a package to override
    found = host.optional_names(_OVERRIDE, r".*\.bin(\.(zst|xz))?")
    if not found:
        return passed("no firmware of your own overrides the package")
    hint = ByHand("remove them once the package is newer, then rebuild the initramfs", Reboot.INITRAMFS)
    return warned(f"{len(found)} files override the package: {', '.join(found[:3])}", len(found), hint)


def mec_versions(host: Host) -> tuple[int | None, ...]:
    """Per GPU the MEC version, None where no source gives one: KFD, then sysfs, then the tools."""
    return tuple(_mec(host, node, index) for index, node in enumerate(host.gpus()))


def _mec(host: Host, node: KfdNode, index: int) -> int | None:
    if "fw_version" in node.values:
        host.saw(node.path, f"fw_version {node.values['fw_version']}")
        found = parse_mec(str(node.values["fw_version"]))
        if found is not None:
            return found
    path = f"/sys/bus/pci/devices/{node.address}/fw_version/mec_fw_version"
    found = parse_mec(host.reading("file", path).text or "") if node.address else None
    if found is not None:
        return found
    for name in ("rocm-smi-showfw", "amd-smi-firmware", "rocminfo"):
        reading = host.root.read("command", name)
        text = reading.text or ""
        if name == "rocm-smi-showfw":
            shown = rocm_smi_versions(text, "MEC").get(index, "")
        elif name == "amd-smi-firmware":
            shown = amd_smi_versions(text, "CP_MEC1").get(index, "")
        else:
            shown = rocminfo_versions(text, GFX[host.target]).get(index, "")
        host.saw(f"command {name}", shown or f"({reading.problem or f'no MEC of GPU {index}'})")
        found = parse_mec(shown)
        if found is not None:
            return found
    return None


@rule(
    "fw.mec",
    INSTINCT,
    why="Older MEC firmware cannot give scratch memory back: RCCL then crashes or refuses, unless the runtime is told.",
    source="RCCL IX936",
)
def mec(host: Host) -> Finding:
    gfx = GFX[host.target]
    found = mec_versions(host)
    floor = MEC_FLOOR[gfx]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        says = f"MEC of {len(found) - len(known)} of {len(found)} GPUs cannot be read: taken as older than {floor}"
        return warned(says, None, _FLAG)
    oldest = min(known)
    if no_scratch_reclaim(gfx, oldest):
        return warned(f"MEC {oldest}, before {floor} on {gfx}", oldest, _FLAG, _BUNDLE)
    rocm = host.rocm()
    if rocm is not None and rocm < (6, 4, 4):
        return warned(f"MEC {oldest} is new enough, ROCm before 6.4.4 is not", oldest, _FLAG)
    return passed(f"MEC {oldest}, from {floor} on {gfx}", oldest)


@rule(
    "fw.uniform",
    INSTINCT,
    why="GPUs of one tray with different firmware are an update that stopped half way.",
    source="DEDUCED",
)
def uniform(host: Host) -> Finding:
    found = mec_versions(host)
    if len(found) == 1:
        return skipped("one GPU")
    if None in found:
        raise CannotTell("not every GPU's MEC version can be read")
    versions = sorted({value for value in found if value is not None})
    if len(versions) == 1:
        return passed(f"MEC {versions[0]} on all {len(found)} GPUs", versions[0])
    return warned(f"MEC {', '.join(map(str, versions))} on one host", ", ".join(map(str, versions)), _BUNDLE)


RULES = (mes, package, files, mec, uniform)
