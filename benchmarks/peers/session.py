"""One sitting: engines take turns on every workload, so that what the machine does meanwhile meets both alike."""

from __future__ import annotations

import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from peers.children import Child
from peers.floors import Floors
from peers.table import Row
from peers.targets import LOAD_TIME, PEAK_MEMORY
from peers.workloads import Workload

GIB = 1 << 30
MEMORY_PROMPT, MEMORY_STEPS = 2048, 16
MEMORY_CONTEXT = 8192
WARM_UP = (Workload("prefill", 512), Workload("decode", 4))
Samples = Mapping[str, Sequence[float]]  # by name of the row
Loader = Callable[[], tuple[Child, float]]  # a process with its model loaded, and the seconds that took


def measure(
    children: Sequence[tuple[str, Child]],
    workloads: Sequence[Workload],
    repeats: int,
    floors: Floors,
    targets: Mapping[str, float],
    beside: Mapping[str, Samples],
) -> Iterator[Row]:
    """One row per workload, as it is done. `children` are (engine's key, process with its model loaded).

    `beside` holds, by engine, samples that were taken before.
    """
    for _, child in children:
        for workload in WARM_UP:
            run(child, workload, -1)
    for workload in workloads:
        samples = {engine: list(rows.get(workload.name, ())) for engine, rows in beside.items()}
        samples |= {engine: [] for engine, _ in children}
        for repeat in range(repeats):
            for engine, child in children:
                samples[engine].append(workload.value(run(child, workload, repeat)))
        yield Row(workload.name, workload.unit, samples, targets.get(workload.name), floors.limit(workload))


def run(child: Child, workload: Workload, repeat: int) -> float:
    """Seconds of one run. Every row and repeat has tokens of its own, the same for every engine."""
    seed = zlib.crc32(f"{workload} {repeat}".encode())
    arguments: dict[str, Any] = {"tokens": workload.tokens, "depth": workload.depth, "seed": seed}
    if workload.kind == "decode":
        arguments["sequences"] = workload.sequences
    seconds: float = child.ask(workload.kind, **arguments)["seconds"]
    print(f"  {child.name}: {workload.name}, {seconds:.3f} s", file=sys.stderr)
    return seconds


def measure_start(
    loaders: Sequence[tuple[str, Sequence[Loader]]],
    repeats: int,
    floors: Floors,
    targets: Mapping[str, float],
) -> Iterator[Row]:
    """Load time and peak memory, each load in a process of its own that answers one prompt of 2,048 tokens.

    An engine with several ways to load counts with the better one, for either row.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for engine, ways in loaders:
            found = [_start(way) for way in ways]
            seconds[engine].append(min(time for time, _ in found))
            peaks[engine].append(min(peak for _, peak in found) / GIB)
    yield Row(LOAD_TIME, "s", seconds, targets.get(LOAD_TIME))
    least = floors.memory(MEMORY_PROMPT + MEMORY_STEPS) / GIB
    yield Row(PEAK_MEMORY, "GiB", peaks, targets.get(PEAK_MEMORY), least)


def _start(way: Loader) -> tuple[float, float]:
    child, seconds = way()
    with child:
        run(child, Workload("prefill", MEMORY_PROMPT), 0)
        run(child, Workload("decode", MEMORY_STEPS), 0)
        peak = child.ask("state")["peak_bytes"]
        print(f"  {child.name}: loaded in {seconds:.1f} s, {peak / GIB:.2f} GiB at most", file=sys.stderr)
        return seconds, peak
