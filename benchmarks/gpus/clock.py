"""How long a call takes on the device itself: events around it, caches emptied before it, the host's part left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_FLUSH = 256 << 20
AHEAD = 4_000_000  # cycles, about two milliseconds: long enough to queue what one call launches


@dataclass(frozen=True)
class Clock:
    """On a CPU, where kernels are interpreted, it only counts seconds, so that everything runs there too."""

    device: torch.device
    repeats: int
    flush: Tensor | None = None

    @staticmethod
    def of(device: torch.device, repeats: int) -> Clock:
        if device.type == "cpu":
            return Clock(device, repeats)
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        return Clock(device, repeats, torch.empty(max(LEAST_FLUSH, 2 * cache), dtype=torch.uint8, device=device))

    def samples(self, call: Callable[[], object]) -> list[float]:
        """Seconds of each of `repeats` calls, after some that compile and warm up.

        The device is kept waiting while the host queues a call, so that launching costs nothing here: an engine replays
        its decode steps as one graph.
        """
        if self.flush is None:
            return [_seconds(call) for _ in range(self.repeats)]
        for _ in range(3):
            call()
        pairs = []
        for _ in range(self.repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            torch.cuda._sleep(AHEAD)
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
