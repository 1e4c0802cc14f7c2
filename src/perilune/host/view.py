"""A typed, lazily read view of a host for one rule. It remembers what it showed: that is the rule's evidence.

Accessors raise CannotTell where a reading is missing, unreadable or senseless; those called `optional_…` return None
where the kernel or a tool says that there is no such thing, and still raise where it cannot be read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from perilune.host.distro import Family, family_of
from perilune.host.kernel import Kernel
from perilune.host.kfd import NODES, Bank, KfdNode, parse_bank
from perilune.host.parse import Option, integer, kernel_options, module_options, version
from perilune.host.rule import GFX, CannotTell, Evidence, Target
from perilune.host.sysroot import Listing, Reading, Sysroot

_LONGEST = 240  # characters of one piece of evidence


@dataclass(frozen=True)
class Ask:
    """What the user has in mind: bytes a plan needs on the GPU, and how many GPUs it is to run on."""

    need: int | None = None
    gpus: int | None = None


class Host:
    """One rule's view. Cheap to make: readings are kept by the Sysroot."""

    def __init__(self, root: Sysroot, target: Target, ask: Ask) -> None:
        self.root, self.target, self.ask = root, target, ask
        self.seen: list[Evidence] = []

    # --- texts and numbers

    def saw(self, path: str, text: str) -> None:
        """Adds to the evidence, once."""
        line = " | ".join(text.strip().splitlines())
        evidence = Evidence(path, line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…")
        if evidence not in self.seen:
            self.seen.append(evidence)

    def reading(self, kind: str, name: str, *, quiet: bool = False) -> Reading:
        found = self.root.read(kind, name)
        if not quiet or found.text is None:
            self.saw(found.path, f"({found.problem})" if found.text is None else found.text)
        return found

    def text(self, name: str, kind: str = "file", *, quiet: bool = False) -> str:
        """The text of a reading. `quiet` leaves it to the caller to say which part of it is evidence."""
        found = self.reading(kind, name, quiet=quiet)
        if found.text is None:
            raise CannotTell(f"{found.path}: {found.problem}")
        return found.text

    def optional_text(self, name: str, kind: str = "file", *, quiet: bool = False) -> str | None:
        found = self.reading(kind, name, quiet=quiet)
        return None if found.absent else self.text(name, kind, quiet=quiet)

    def number(self, name: str) -> int:
        return self._integer(name, self.text(name))

    def optional_number(self, name: str) -> int | None:
        text = self.optional_text(name)
        return None if text is None else self._integer(name, text)

    def size(self, name: str) -> int:
        """A number of bytes or pages that cannot be zero or less."""
        found = self.number(name)
        if found <= 0:
            raise CannotTell(f"{name}: {found} is no size")
        return found

    def _integer(self, name: str, text: str) -> int:
        found = integer(text)
        if found is None:
            raise CannotTell(f"{name}: {text.strip()[:40]!r} is not a number")
        return found

    def names(self, path: str, pattern: str) -> tuple[str, ...]:
        """What is in a folder. Only a problem is evidence: a listing is the way to something, not the thing."""
        listing = self.root.names(path, pattern)
        if listing.problem:
            self.saw(path, f"({listing.problem})")
        return self._readable(listing)

    def optional_names(self, path: str, pattern: str) -> tuple[str, ...] | None:
        listing = self.root.names(path, pattern)
        self.saw(path, f"({listing.problem})" if listing.problem else " ".join(listing.names) or "(empty)")
        return None if listing.absent else self._readable(listing)

    def _readable(self, listing: Listing) -> tuple[str, ...]:
        if listing.problem:
            raise CannotTell(f"{listing.path}: {listing.problem}")
        return listing.names

    # --- the system

    def kernel(self) -> Kernel:
        text = self.text("/proc/sys/kernel/osrelease")
        found = Kernel.parse(text)
        if found is None:
            raise CannotTell(f"/proc/sys/kernel/osrelease: {text.strip()[:40]!r} is no kernel release")
        return found

    def family(self) -> Family | None:
        text = self.optional_text("/etc/os-release")
        return None if text is None else family_of(text)

    def meminfo(self, key: str) -> int:
        """Bytes (a bare count for HugePages_…) of one line of /proc/meminfo."""
        for line in self.text("/proc/meminfo", quiet=True).splitlines():
            name, _, rest = line.partition(":")
            if name == key:
                self.saw("/proc/meminfo", line)
                words = rest.split()
                found = integer(words[0]) if words else None
                if found is None or found < 0 or (key == "MemTotal" and found == 0):
                    raise CannotTell(f"/proc/meminfo: {line.strip()[:60]!r} has no amount")
                return found * (1024 if words[1:] == ["kB"] else 1)
        self.saw("/proc/meminfo", f"(no {key})")
        raise CannotTell(f"/proc/meminfo: no {key}")

    def options(self, *names: str) -> tuple[Option, ...]:
        """All options with one of these names on the kernel's command line, in order; the last one is in force."""
        found = tuple(o for o in kernel_options(self.text("/proc/cmdline", quiet=True)) if o.name in names)
        self.saw("/proc/cmdline", " ".join(option.text for option in found) or f"(no {' '.join(names)})")
        return found

    def option(self, name: str) -> Option | None:
        found = self.options(name)
        return found[-1] if found else None

    def module_options(self, *names: str) -> tuple[Option, ...]:
        """The same from /etc/modprobe.d, files in order; () if there is no such folder."""
        found = []
        folder = "/etc/modprobe.d"
        for file in self.optional_names(folder, r".*\.conf") or ():
            for option in module_options(self.text(f"{folder}/{file}", quiet=True)):
                if option.name in names:
                    self.saw(f"{folder}/{file}", option.text)
                    found.append(option)
        return tuple(found)

    def device(self, path: str) -> str:
        return self.text(path, "device")

    def variable(self, name: str) -> str | None:
        """The container's value where `docker inspect` was given, else this process's; None if unset or empty."""
        container = self.container()
        if container is None:
            return (self.optional_text(name, "variable") or "").strip() or None
        found = None
        for word in _strings(_mapping(container.get("Config")).get("Env")):
            key, _, value = word.partition("=")
            if key == name:
                self.saw("command docker-inspect", word)
                found = value
        return found or None

    def package(self, name: str) -> tuple[int, ...] | None:
        """The numbers of an installed Python package's version; None if it is not installed."""
        text = self.optional_text(name, "package")
        if text is None:
            return None
        found = version(text)
        if found is None:
            raise CannotTell(f"package {name}: {text[:40]!r} is no version")
        return found

    def rocm(self) -> tuple[int, ...] | None:
        """ROCm's version, from the host's own or from what torch was built with; None if there is none."""
        for path in ("/opt/rocm/.info/version", *self._rocm_folders()):
            text = self.optional_text(path)
            if text is not None:
                found = version(text)
                if found is None:
                    raise CannotTell(f"{path}: {text.strip()[:40]!r} is no version")
                return found
        wheels = self.package("rocm-sdk-core")
        torch = self.optional_text("torch", "package") or ""
        return wheels or version(torch.partition("+rocm")[2])

    def _rocm_folders(self) -> tuple[str, ...]:
        names = self.root.names("/opt", r"rocm-[0-9.]+")
        return tuple(f"/opt/{name}/.info/version" for name in self._readable(names)) if not names.absent else ()

    def in_container(self) -> bool:
        """Whether the doctor itself runs in one; Docker and Podman each leave a file at the root."""
        inside = False
        for path in ("/.dockerenv", "/run/.containerenv"):
            found = self.root.read("file", path)
            self.saw(path, "(there)" if found.text is not None else f"({found.problem})")
            inside = inside or not found.absent
        return inside

    def container(self) -> dict[str, Any] | None:
        """What `docker inspect` said of a container, if the user gave it."""
        text = self.root.read("command", "docker-inspect").text
        if text is None:
            return None
        try:
            found = json.loads(text)[0]
        except (ValueError, LookupError, TypeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.saw("command docker-inspect", text)
            raise CannotTell("what was given as docker-inspect is not the output of docker inspect")
        return found

    # --- the GPUs

    def nodes(self) -> tuple[KfdNode, ...]:
        """Every KFD node, in the kernel's order. One that says too little could be one GPU more."""
        found = []
        for name in self.names(NODES, r"\d+"):
            path = f"{NODES}/{name}/properties"
            node = KfdNode.parse(path, self.text(path, quiet=True))
            if not node.is_gpu and not node.is_cpu:
                self.saw(path, "(neither a GPU nor a processor)")
                raise CannotTell(f"{path}: neither a GPU nor a processor")
            found.append(node)
        return tuple(found)

    def gpus(self) -> tuple[KfdNode, ...]:
        """The nodes of the target's chip; at least one."""
        found = tuple(node for node in self.nodes() if node.is_gpu and node.gfx == GFX.get(self.target))
        if not found:
            raise CannotTell(f"no node of {NODES} is a {GFX.get(self.target, 'GPU')}")
        return found

    def value(self, node: KfdNode, name: str) -> int:
        found = node.values.get(name)
        self.saw(node.path, f"(no {name})" if found is None else f"{name} {found}")
        if found is None:
            raise CannotTell(f"{node.path}: no {name}")
        return found

    def heap(self, node: KfdNode) -> int:
        """Bytes of the largest bank that KFD calls the GPU's own."""
        folder = node.path.removesuffix("properties") + "mem_banks"
        banks: list[Bank] = []
        for name in self.names(folder, r"\d+"):
            path = f"{folder}/{name}/properties"
            bank = parse_bank(path, self.text(path, quiet=True))
            self.saw(path, f"heap_type {bank.heap}, size_in_bytes {bank.size}")
            if bank.heap is None or bank.size is None:
                raise CannotTell(f"{path}: no heap_type or size_in_bytes")
            banks.append(bank)
        sizes = [bank.size for bank in banks if bank.heap in (1, 2) and bank.size is not None and bank.size > 0]
        if not sizes:
            raise CannotTell(f"{folder}: no bank is the GPU's own")
        return max(sizes)

    def card(self, node: KfdNode) -> str:
        """The folder of a node's PCI device: /sys/class/drm/cardN/device with the same address."""
        folder = "/sys/class/drm"
        cards = [f"{folder}/{name}/device" for name in self.names(folder, r"card\d+")]
        alike = []
        for card in cards:
            slot = self._quiet(f"{card}/uevent")
            if node.address is not None and f"PCI_SLOT_NAME={node.address}" in (slot or "").splitlines():
                return card
            ids = tuple(integer(self._quiet(f"{card}/{name}") or "") for name in ("vendor", "device"))
            if not slot and ids == (0x1002, node.values.get("device_id")):
                alike.append(card)
        if len(alike) != 1:
            raise CannotTell(f"no card of {folder} has the address {node.address} of {node.path}")
        return alike[0]

    def _quiet(self, path: str) -> str | None:
        return self.root.read("file", path).text

    # --- Strix Halo's memory

    def vram(self) -> int:
        return self.size(f"{self.card(self.gpus()[0])}/mem_info_vram_total")

    def gtt(self) -> int:
        return self.size(f"{self.card(self.gpus()[0])}/mem_info_gtt_total")

    def ttm_module(self) -> str:
        """`amdttm` with AMD's own driver, whose option governs even if both are loaded; else `ttm`."""
        for name in ("amdttm", "ttm"):
            if self.root.read("file", f"/sys/module/{name}/parameters/pages_limit").problem != "absent":
                return name
        self.saw("/sys/module/{ttm,amdttm}/parameters/pages_limit", "(absent)")
        raise CannotTell("neither ttm nor amdttm is loaded")

    def page_limit(self) -> int:
        """Bytes TTM lets GPUs map: its page limit times 4096."""
        return 4096 * self.size(f"/sys/module/{self.ttm_module()}/parameters/pages_limit")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def lines_with(text: str, pattern: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(pattern, line)]
