"""The part of a run between filling up and draining, and whether the server's speed was steady in it."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from perilune.bench.load.record import Record

_LEAST = 10


@dataclass(frozen=True)
class Window:
    """`start` and `end` in seconds of the run. `trend` is the p-value of "no trend in times per token", `drift` by how
    much of their median they change over the window."""

    start: float
    end: float
    requests: int
    trend: float | None
    drift: float | None = None

    @property
    def steady(self) -> bool:
        """No drift above 5 % that chance would show less than once in a hundred runs. Too few requests show nothing."""
        return self.trend is None or self.drift is None or self.trend >= 0.01 or abs(self.drift) <= 0.05


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
    if len(inside) < _LEAST:
        return Window(start, end, len(inside), None)
    values = _thinned([value for _, value in inside])
    return Window(
        start, end, len(inside), mann_kendall(values), slope(values) * len(values) / statistics.median(values)
    )


def mann_kendall(values: Sequence[float]) -> float:
    """Two-sided p of no monotone trend, by the normal approximation, corrected for neighbours that are alike.

    Requests of one batch share their speed, so the values are fewer than they look: the variance of S is widened by
    Hamed and Rao's factor (1998), from the ranks' autocorrelation once the trend is taken out.
    """
    n = len(values)
    s = sum((b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :])
    if s == 0:
        return 1.0
    variance = n * (n - 1) * (2 * n + 5) / 18 * _inflation(values)
    return math.erfc((abs(s) - 1) / math.sqrt(2 * variance))


def slope(values: Sequence[float]) -> float:
    """Theil and Sen's: the median change from one value to the next, over all pairs."""
    return statistics.median(
        (b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values[i + 1 :], i + 1)
    )


def _inflation(values: Sequence[float]) -> float:
    """n / n*, at least 1: 1 + 2 Σ (n-i)(n-i-1)(n-i-2) ρ(i) / (n(n-1)(n-2)), over lags beyond what chance gives."""
    n, tilt = len(values), slope(values)
    flat = [value - tilt * (i - (n - 1) / 2) for i, value in enumerate(values)]
    order = sorted(flat)
    ranks = [(bisect.bisect_left(order, v) + bisect.bisect_right(order, v) - n) / 2 for v in flat]
    power = sum(rank * rank for rank in ranks)
    if power == 0:
        return 1.0
    total = 0.0
    for lag in range(1, n - 2):
        alike = sum(a * b for a, b in zip(ranks, ranks[lag:], strict=False)) / power
        if abs(alike) > 1.96 / math.sqrt(n):
            total += (n - lag) * (n - lag - 1) * (n - lag - 2) * alike
    return max(1.0, 1 + 2 * total / (n * (n - 1) * (n - 2)))


def _thinned(values: list[float], most: int = 300) -> list[float]:
    """Means of neighbours, so that at most so many are left: the tests look at all pairs."""
    step = -(-len(values) // most)
    return [statistics.fmean(values[i : i + step]) for i in range(0, len(values), step)]
