"""How many threads should compute, one per physical core this process may use, and how they wait. Imports no torch.

Two hardware threads of one core share its multipliers and caches, which one compute thread keeps busy alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# The environment of a process that computes. Threads wait for each other a fifth of a millisecond awake, longer than
# Python takes from one op to the next (always asleep, a step of 60 ops loses 3 ms to wake-ups), then asleep. Awake
# without end, threads that lost their core to another process made one token a second of 80 (docs/log.md).
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def compute_threads(
    allowed: frozenset[int] | None = None, sys: Path = Path("/sys"), proc: Path = Path("/proc")
) -> tuple[int, str]:
    """(threads, where the number comes from), at least 1. `allowed`: processor ids; by default this process's own.

    Counts cores, not their hardware threads, where the system tells them apart; a control group's share of processor
    time lowers the number, rounded up.
    """
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)
        allowed = frozenset(affinity(0) if affinity else range(os.cpu_count() or 1))
    cores = {_siblings(sys / f"devices/system/cpu/cpu{cpu}/topology", cpu) for cpu in allowed}
    count, why = max(len(cores), 1), "the physical cores this process may use"
    for share, group in _quotas(sys / "fs/cgroup", proc):
        whole = max(-int(-share // 1), 1)
        if whole < count:
            count, why = whole, f"the {group} limit of {share:g} processors"
    return count, why


def _siblings(topology: Path, cpu: int) -> str:
    """A name for the core: the list of its hardware threads; the processor's own number where nothing is known."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        text = _read(topology / name)
        if text:
            return text
    return str(cpu)


def _quotas(cgroup: Path, proc: Path) -> Iterator[tuple[float, str]]:
    """Processors' worth of time per control group with a limit, from this process's own group up to the root."""
    for line in _read(proc / "self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        root = cgroup if controllers == "" else cgroup / "cpu"
        if controllers != "" and "cpu" not in controllers.split(","):
            continue
        inside = Path(path.lstrip("/"))
        if ".." in inside.parts:  # the group lies outside this process's namespace: only the mounted root is visible
            inside = Path()
        for group in (inside, *inside.parents):
            if controllers == "":
                quota, _, period = _read(root / group / "cpu.max").partition(" ")
                kind = "cgroup v2"
            else:
                quota, period = (_read(root / group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                kind = "cgroup v1"
            if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period), kind


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
