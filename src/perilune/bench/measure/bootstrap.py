"""Intervals within one run. Requests of one batch are alike, so neighbours are drawn together: a block bootstrap.

It says how well this run knows its own quantiles. How runs differ, only repeats can tell (statistics.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from perilune.bench.load.record import Record
from perilune.bench.measure.metrics import PER_REQUEST

FEWEST = 20
"""Requests below which nothing is said: blocks of so few are all alike."""
_QUANTILES = (50, 99)
_MOST = 4_000_000  # numbers drawn for one metric


def intervals(records: Sequence[Record], level: float = 0.95) -> dict[str, list[float]]:
    """Low and high of each request metric's median and p99, by name, as `summary` calls them; seconds.

    p99 only from 1,000 requests on: a bootstrap cannot see beyond the largest value it was given.
    """
    found: dict[str, list[float]] = {}
    done = sorted((r for r in records if r.ok and r.sent is not None), key=lambda r: r.sent or 0.0)
    for metric in PER_REQUEST:
        values = [value for record in done if (value := metric.of(record)) is not None]
        for q in _QUANTILES:
            if len(values) >= (FEWEST if q == 50 else 1000):
                found[f"{metric.name}_p{q}"] = list(bootstrap(values, q / 100, level))
    return found


def bootstrap(values: Sequence[float], quantile: float, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The interval of a quantile of `values`, in the order of their times, by its percentiles over resampled runs."""
    array = np.asarray(values)
    n, length = len(array), block(values)
    times = max(100, min(1000, _MOST // n))
    starts = np.random.default_rng(seed).integers(0, n, (times, -(-n // length)))
    drawn = ((starts[:, :, None] + np.arange(length)) % n).reshape(times, -1)[:, :n]
    found = np.quantile(array[drawn], quantile, axis=1)
    low, high = np.quantile(found, [(1 - level) / 2, 1 - (1 - level) / 2])
    return float(low), float(high)


def block(values: Sequence[float]) -> int:
    """How many neighbours to draw together: the length that is best for a process whose memory fades geometrically,
    (3/2)^(1/3) · (2ρ / (1-ρ²))^(2/3) · n^(1/3) (Politis and White 2004, circular blocks), ρ the correlation of the
    ranks of neighbours; at most a fifth of all. 1, plain resampling, where neighbours have nothing in common.
    """
    n, order = len(values), np.sort(values)
    ranks = (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") - n) / 2
    power = float(ranks @ ranks)
    alike = float(ranks[:-1] @ ranks[1:]) / power if power else 0.0
    if alike <= 1.96 / math.sqrt(n):  # no more than chance gives
        return 1
    alike = min(alike, 0.99)
    best = (1.5 ** (1 / 3)) * (2 * alike / (1 - alike**2)) ** (2 / 3) * n ** (1 / 3)
    return int(max(1, min(math.ceil(best), n // 5)))
