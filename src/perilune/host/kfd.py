"""The topology that the amdkfd driver shows below /sys/class/kfd: which GPUs compute, what they are, what memory."""

from __future__ import annotations

from dataclasses import dataclass

from perilune.host.parse import integer

NODES = "/sys/class/kfd/kfd/topology/nodes"
FIRMWARE_BITS = 0x7FF  # a MEC version's own bits; the rest says what it was built for (32945 = 0x80B1 -> 177)


def gfx_name(code: int) -> str:
    """`110501` -> `gfx1151`, `90010` -> `gfx90a`: decimal major, then minor and step as one hexadecimal digit each."""
    return f"gfx{code // 10000}{code // 100 % 100:x}{code % 100:x}"


def bus_address(domain: int, location: int) -> str:
    """`(0, 50432)` -> `0000:c5:00.0`."""
    return f"{domain & 0xFFFF:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


@dataclass(frozen=True)
class KfdNode:
    """One node's `properties`. Values that are no numbers are left out, as if the kernel did not know them."""

    path: str
    values: dict[str, int]

    @classmethod
    def parse(cls, path: str, text: str) -> KfdNode:
        values = {}
        for line in text.splitlines():
            name, _, value = line.strip().partition(" ")
            number = integer(value)
            if number is not None:
                values[name] = number
        return cls(path, values)

    @property
    def is_gpu(self) -> bool:
        return self.values.get("simd_count", 0) > 0 and self.values.get("gfx_target_version", 0) > 0

    @property
    def is_cpu(self) -> bool:
        """Says of itself that it is none; a node without either line is neither."""
        return 0 in (self.values.get("simd_count"), self.values.get("gfx_target_version"))

    @property
    def gfx(self) -> str:
        return gfx_name(self.values.get("gfx_target_version", 0))

    @property
    def address(self) -> str | None:
        """The PCI address; None for an integrated or virtual node that names none."""
        location = self.values.get("location_id")
        return None if location is None else bus_address(self.values.get("domain", 0), location)


@dataclass(frozen=True)
class Bank:
    """One `mem_banks/*/properties`: heap 0 is system memory, 1 and 2 are what the GPU calls its own."""

    path: str
    heap: int | None
    size: int | None


def parse_bank(path: str, text: str) -> Bank:
    values = KfdNode.parse(path, text).values
    return Bank(path, values.get("heap_type"), values.get("size_in_bytes"))
