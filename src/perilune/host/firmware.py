"""Firmware versions as tools and drivers print them, and what follows from one. An odd text is None, never a pass.

Why the scratch flag: RCCL refuses kernels that use scratch memory unless the MEC firmware can give it back, or the
runtime is told not to ask (RCCL's validHsaScratchEnvSetting).
"""

from __future__ import annotations

import json
import re

from perilune.host.kfd import FIRMWARE_BITS
from perilune.host.parse import integer

# The first MEC version that gives scratch memory back, by chip.
MEC_FLOOR = {"gfx942": 177, "gfx950": 24}
MES_BAD = 0x83  # shipped by linux-firmware 20251125: memory access faults on gfx1151
_MES_GOOD = (0x74, 0x7C, 0x80)
_MES_BITS = 0xFFF


def parse_mec(text: str) -> int | None:
    """`177`, `0x000000b1` and `32945` are 177; `N/A`, `v177`, `177b`, an empty text and 0 are None."""
    number = integer(text)
    return None if number is None or number <= 0 else (number & FIRMWARE_BITS) or None


def no_scratch_reclaim(gfx: str, mec: int | None) -> bool:
    """Whether HSA_NO_SCRATCH_RECLAIM=1 is needed. A version nobody could read counts as an old one."""
    return mec is None or mec < MEC_FLOOR[gfx]


def parse_mes(text: str) -> int | None:
    """The version without its upper bits: `0x00000083` -> 0x83."""
    number = integer(text)
    return None if number is None or number <= 0 else (number & _MES_BITS) or None


def mes_is_good(mes: int) -> bool | None:
    """True and False as seen on gfx1151 hosts, None for a version nobody has reported on."""
    if mes == MES_BAD:
        return False
    return True if mes in _MES_GOOD or mes > MES_BAD else None


def rocm_smi_versions(text: str, name: str) -> dict[int, str]:
    """`rocm-smi --showfw`: version text per GPU index of exactly `name` ("MEC" is not "MEC2", "MES" not "MES KIQ")."""
    lines = re.findall(rf"GPU\[(\d+)\].*?: {re.escape(name)} firmware version:\s*(\S*)", text)
    if not lines:  # the same with --json
        cards = re.findall(r'"card(\d+)":\s*\{([^}]*)\}', text)
        key = rf'"{re.escape(name)} firmware version":\s*"([^"]*)"'
        lines = [(card, match[1]) for card, body in cards if (match := re.search(key, body))]
    return {int(gpu): value for gpu, value in lines}


def amd_smi_versions(text: str, name: str) -> dict[int, str]:
    """`amd-smi firmware --json`, scrubbed to its list: version text per GPU index of firmware `name`, as CP_MEC1."""
    try:
        gpus = json.loads(text)
        return {
            int(gpu["gpu"]): str(entry["fw_version"])
            for gpu in gpus
            for entry in gpu["fw_list"]
            if entry["fw_id"] == name
        }
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def rocminfo_versions(text: str, gfx: str) -> dict[int, str]:
    """`rocminfo`: the packet processor's version of each agent called `gfx`, in order."""
    found: list[str] = []
    agent = ""
    for name, value in re.findall(r"^\s*(Name|Packet Processor uCode):+\s+(\S+)", text, re.MULTILINE):
        if name == "Name":
            agent = value
        elif agent == gfx:
            found.append(value)
    return dict(enumerate(found))
