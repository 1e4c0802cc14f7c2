"""How much memory a new process can have. Read-only; reads /proc and the cgroup files. Imports no torch.

In a container /proc/meminfo tells of the whole machine, so the limit of every control group above this process counts
too. A group's page cache is reclaimed before the group is out of memory, so its inactive file pages count as free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# cgroup v1 says "no limit" with a number near 2^63.
_UNLIMITED = 1 << 60


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """(bytes, where the number comes from): the smallest of what the machine and each control group can still give."""
    found = [reading for reading in (_meminfo(proc), *_groups(proc, cgroup)) if reading is not None]
    if not found:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size, "all physical memory; what is in use is unknown on this system"
    return min(found)


def _meminfo(proc: Path) -> tuple[int, str] | None:
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024, "MemAvailable of /proc/meminfo"
    return None


def _groups(proc: Path, root: Path) -> Iterator[tuple[int, str]]:
    """One reading per group with a limit, from this process's own group up to the root."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            yield from _walk(root, path, "memory.max", "memory.current", "inactive_file", "cgroup v2")
        elif "memory" in controllers.split(","):
            v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "cgroup v1")
            yield from _walk(root / "memory", path, *v1)


def _walk(root: Path, path: str, limit: str, usage: str, reclaimable: str, kind: str) -> Iterator[tuple[int, str]]:
    inside = Path(path.lstrip("/"))
    if ".." in inside.parts:  # the group lies outside this process's namespace: only the mounted root is visible
        inside = Path()
    for group in (inside, *inside.parents):
        folder = root / group
        most, used = _number(folder / limit), _number(folder / usage)
        if most is None or used is None or most >= _UNLIMITED:
            continue
        stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
        cached = int(stat.get(reclaimable, "0"))
        free = max(0, most - max(0, used - cached))
        yield free, f"the {kind} limit of {most} bytes less what the group uses"


def _number(file: Path) -> int | None:
    text = _read(file).strip()
    return int(text) if text.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
