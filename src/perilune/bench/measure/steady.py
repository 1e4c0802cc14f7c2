"""The part of a run between filling up and draining, and whether the server's speed was steady in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perilune.bench.load.record import Record

_LEAST = 10


@dataclass(frozen=True)
class Window:
    """`start` and `end` in seconds of the run. `trend` is the p-value of "no trend in end-to-end times"."""

    start: float
    end: float
    requests: int
    trend: float | None

    @property
    def steady(self) -> bool:
        """No trend that chance would show less than once in a hundred runs. Too few requests show nothing."""
        return self.trend is None or self.trend >= 0.01


def window(records: Sequence[Record], fill: float = 0.8) -> Window | None:
    """The longest stretch from when `fill` of the peak of open requests is first reached to when it is last left.

    None if nothing succeeded. The trend is Mann and Kendall's test over service time per token.
    """
    done = [(r.sent, r.end, r) for r in records if r.ok and r.sent is not None and r.end is not None]
    if not done:
        return None
    changes = sorted([(sent, 1) for sent, _, _ in done] + [(end, -1) for _, end, _ in done])
    peak = level = 0
    for _, step in changes:
        level += step
        peak = max(peak, level)
    level, full = 0, list[float]()
    for at, step in changes:
        before, level = level, level + step
        if min(before, level) < fill * peak <= max(before, level):
            full.append(at)
    start, end = full[0], full[-1]
    inside = [(sent, (stop - sent) / (r.output_tokens or 1)) for sent, stop, r in done if start <= sent and stop <= end]
    inside.sort()
    trend = mann_kendall([value for _, value in inside]) if len(inside) >= _LEAST else None
    return Window(start, end, len(inside), trend)


def mann_kendall(values: Sequence[float]) -> float:
    """Two-sided p of no monotone trend, by the normal approximation. At most 500 values are looked at."""
    step = max(1, len(values) // 500)
    some = values[::step]
    n = len(some)
    s = sum((b > a) - (b < a) for i, a in enumerate(some) for b in some[i + 1 :])
    if s == 0:
        return 1.0
    z = (abs(s) - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return math.erfc(z / math.sqrt(2))
