"""The device of a host as the doctor reads it: whose chip, how many, and the memory one process can really have."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from perilune.errors import ConfigError
from perilune.host.capacity import capacity, classify
from perilune.host.doctor import choose_target
from perilune.host.memory import available_memory
from perilune.host.profiles import PROFILES, DeviceProfile
from perilune.host.rule import INSTINCT, STRIX, CannotTell, Target
from perilune.host.sysroot import Sysroot
from perilune.host.view import Ask, Host
from perilune.units import format_bytes

_AS_READ = "read from this host by the doctor"


@dataclass(frozen=True)
class Doctored:
    """`memory` in bytes that one process can have on one device, `says` why so much, `count` devices of the kind."""

    profile: DeviceProfile
    memory: int
    says: str
    count: int = 1


def doctored(root: Sysroot, *, live: bool) -> Doctored:
    """What `root` has to compute with; `live` is whether it is the machine this runs on.

    Raises ConfigError where the readings that tell the memory are missing or make no sense: no number is made up.
    """
    target, why = choose_target(root)
    host = Host(root, target, Ask())
    profile = next(each for each in PROFILES if each.target is target)
    try:
        if target in STRIX:
            memory, says = _strix_halo(host)
        elif target in INSTINCT:
            memory, says = _instinct(host)
        elif target is Target.CPU:
            memory, says = available_memory() if live else (host.meminfo("MemAvailable"), "MemAvailable")
        else:
            raise CannotTell("NVIDIA's driver tells its memory to nvidia-smi only")
    except CannotTell as problem:
        raise ConfigError(
            f"The memory of this host cannot be told ({why}).",
            f"{problem}.",
            f"`perilune doctor` says what is wrong; or plan with --device {profile.name}, or --memory.",
        ) from problem
    return Doctored(profile, memory, f"{says}; {_AS_READ}", len(host.gpus()) if target in STRIX | INSTINCT else 1)


def _strix_halo(host: Host) -> tuple[int, str]:
    heap, carved, mapped, limit = host.heap(host.gpus()[0]), host.vram(), host.gtt(), host.page_limit()
    memory = host.meminfo("MemTotal")
    found = classify(carved, mapped, limit, heap, memory)
    most = min(heap, capacity(carved, mapped, limit, memory))
    if found is None:
        raise CannotTell(
            f"heap {format_bytes(heap)}, VRAM {format_bytes(carved)}, GTT {format_bytes(mapped)} and limit "
            f"{format_bytes(limit)} are like none of the known states"
        )
    return most, f"{found}: {format_bytes(most)} for one GPU process of {format_bytes(memory)}"


def _instinct(host: Host) -> tuple[int, str]:
    """The least of the GPUs whose memory can be read; how many those are is said."""
    nodes, heaps = host.gpus(), list[int]()
    for node in nodes:
        with suppress(CannotTell):
            heaps.append(host.heap(node))
    if not heaps:
        return host.heap(nodes[0]), ""  # raises with the reason
    return min(heaps), f"{format_bytes(min(heaps))} as KFD shows for {len(heaps)} of {len(nodes)} GPUs"
