"""Which GPUs there are, whether they are the ones meant, and whether they are free."""

from __future__ import annotations

from perilune.host.fixes import ByHand
from perilune.host.kfd import NODES, KfdNode
from perilune.host.rule import (
    AMD,
    GFX,
    INSTINCT,
    STRIX,
    CannotTell,
    Finding,
    Target,
    failed,
    passed,
    rule,
    warned,
)
from perilune.host.view import Host
from perilune.units import format_bytes

_LOAD = ByHand("sudo modprobe amdgpu; if that fails, sudo dmesg | grep amdgpu says why")
_SPX = ByHand("echo SPX | sudo tee /sys/class/drm/card*/device/current_compute_partition; NPS1 with amd-smi set")
# Names per PCI id. The marketing name of a chip varies with tool and driver, so nothing is ever matched on it.
_MODELS = {
    Target.STRIX_HALO: {0x1586: "Strix Halo"},
    Target.MI300X: {0x74A1: "MI300X"},
    Target.MI355X: {0x75A0: "MI350X", 0x75A3: "MI355X", 0x75B0: "MI350X, virtual function"},
}
_STRIX_SIMDS = {80: "40 CU, Radeon 8060S", 64: "32 CU, Radeon 8050S", 32: "16 CU, Radeon 8040S"}
_BUSY_PERCENT = 10


@rule(
    "gpu.kfd_nodes",
    AMD,
    why="ROCm reaches a GPU only through the amdkfd driver; what it does not list, no program can use.",
    source="FIXTURES",
)
def kfd_nodes(host: Host) -> Finding:
    if host.optional_names(NODES, r"\d+") is None:
        return failed("amdkfd shows no topology: amdgpu is not loaded, or ROCm is off in the kernel", None, _LOAD)
    nodes = host.nodes()
    gpus = [node for node in nodes if node.is_gpu]
    for node in nodes:
        host.saw(node.path, f"gfx_target_version {node.values.get('gfx_target_version')}")
    mine = [node for node in gpus if node.gfx == GFX[host.target]]
    if mine:
        return passed(f"{len(mine)} x {mine[0].gfx}", len(mine))
    found = ", ".join(sorted({node.gfx for node in gpus}))
    if found:
        return warned(f"{found}, which is not the {GFX[host.target]} that {host.target} stands for", found)
    return failed("amdkfd lists no GPU", None, _LOAD)


@rule(
    "gpu.model",
    AMD,
    why="Chips that share a name or the beginning of a gfx code differ in memory, units and firmware.",
    source="FIXTURES 5891",
)
def model(host: Host) -> Finding:
    node = host.gpus()[0]
    device = host.value(node, "device_id")
    name = _MODELS[host.target].get(device)
    if name is None:
        return warned(f"device 0x{device:04x} is not known as {host.target}", f"0x{device:04x}")
    if node.address is not None:
        other = host.optional_number(f"/sys/bus/pci/devices/{node.address}/device")
        if other is not None and other != device:
            return warned(f"KFD says 0x{device:04x}, PCI says 0x{other:04x}", f"0x{device:04x}")
    if host.target is Target.STRIX_HALO:
        units = host.value(node, "simd_count")
        name += f", {_STRIX_SIMDS.get(units, f'{units} SIMDs, a part not seen before')}"
    return passed(name, f"0x{device:04x}")


@rule(
    "gpu.count",
    INSTINCT,
    why="A launch recipe names how many ranks it starts; partitioned or missing GPUs change that number.",
    source="4750",
)
def count(host: Host) -> Finding:
    gpus, wanted = host.gpus(), host.ask.gpus or 8
    found = len(gpus)
    for gpu in gpus[:2]:
        host.value(gpu, "gfx_target_version")
    says = f"{found} GPU nodes, {wanted} wanted"
    hint = ByHand("with 64 nodes see gpu.partition; with fewer than 8 look for a GPU lost on the bus: sudo dmesg")
    return passed(says, found) if found == wanted else warned(says, found, hint)


@rule(
    "gpu.partition",
    INSTINCT,
    why="In CPX or NPS4 every partition has a fraction of the memory: one rank no longer holds its share of the model.",
    source="KDOC 4750",
)
def partition(host: Host) -> Finding:
    modes = set()
    for card in _cards(host):
        kinds = (host.text(f"{card}/current_{kind}_partition").strip() for kind in ("compute", "memory"))
        modes.add("+".join(kinds))
    if any(part not in _PARTITIONS for mode in modes for part in mode.split("+")):
        raise CannotTell(f"a partition mode that is not known: {', '.join(sorted(modes))[:60]}")
    says = ", ".join(sorted(modes))
    if modes == {"SPX+NPS1"}:
        return passed("SPX, NPS1", says)
    return failed(f"{says}, where tensor parallelism wants SPX and NPS1", says, _SPX)


_PARTITIONS = {"SPX", "DPX", "TPX", "QPX", "CPX", "NPS1", "NPS2", "NPS4", "NPS8"}


@rule(
    "gpu.clean",
    INSTINCT,
    why="Memory held by another process, or left by one that died, is missing when the model loads.",
    source="IX",
)
def clean_instinct(host: Host) -> Finding:
    worst = 0
    for card in _cards(host):
        used, total = host.number(f"{card}/mem_info_vram_used"), host.size(f"{card}/mem_info_vram_total")
        if used < 0:
            raise CannotTell(f"{card}/mem_info_vram_used: {used} is no size")
        worst = max(worst, -(-100 * used // total))
    says = f"at most {worst} % of a GPU's memory is in use"
    if worst <= _BUSY_PERCENT:
        return passed(says, worst)
    return warned(says, worst, ByHand("find the process: ls /sys/class/kfd/kfd/proc; stop it, wait until 10 % or less"))


@rule(
    "gpu.clean",
    STRIX,
    why="What another process maps for the GPU is missing for the model. The carve-out's own percentage says nothing.",
    source="IX HOG",
)
def clean_strix(host: Host) -> Finding:
    card = host.card(host.gpus()[0])
    used, total = host.number(f"{card}/mem_info_gtt_used"), host.size(f"{card}/mem_info_gtt_total")
    if used < 0:
        raise CannotTell(f"{card}/mem_info_gtt_used: {used} is no size")
    available = host.meminfo("MemAvailable")
    percent = -(-100 * used // total)
    says = f"{format_bytes(used)} mapped for the GPU, {format_bytes(available)} of memory available"
    if percent <= _BUSY_PERCENT:
        return passed(says, used)
    return warned(says, used, ByHand("find the process: ls /sys/class/kfd/kfd/proc; stop it before a model is loaded"))


def _cards(host: Host) -> tuple[str, ...]:
    """One PCI device per GPU; partitions of one GPU share it."""
    gpus: dict[str | None, KfdNode] = {node.address: node for node in reversed(host.gpus())}
    return tuple(sorted(host.card(node) for node in gpus.values()))


RULES = (kfd_nodes, model, count, partition, clean_instinct, clean_strix)
