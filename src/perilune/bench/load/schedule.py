"""When requests should be sent. Times are absolute: a late request does not push the ones after it."""

from __future__ import annotations

import math

import numpy as np

from perilune.bench.spec.workload import Closed, Constant, Gamma, Load, Poisson, Ramp, Replay


def times(load: Load, rng: np.random.Generator) -> list[float] | None:
    """Seconds from the start of the run, ascending; None where answers or a trace decide."""
    match load:
        case Closed() | Replay():
            return None
        case Constant(rate=rate, requests=count):
            return [i / rate for i in range(count)]
        case Poisson(rate=rate, requests=count):
            return _summed(rng.exponential(1 / rate, count))
        case Gamma(rate=rate, requests=count, burstiness=shape):
            return _summed(rng.gamma(shape, 1 / (rate * shape), count))
        case Ramp():
            return ramp(load.start, load.stop, load.seconds)


def ramp(start: float, stop: float, seconds: float) -> list[float]:
    """Request i is sent when the integral of the rate, start·t + (stop - start)·t²/(2·seconds), reaches i."""
    slope = (stop - start) / seconds
    count = round((start + stop) / 2 * seconds)
    found = []
    for i in range(count):
        root = math.sqrt(max(0.0, start * start + 2 * slope * i))
        found.append(i / start if slope == 0 else (root - start) / slope)
    return found


def _summed(gaps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    return [float(value) for value in np.cumsum(gaps) - gaps[0]]
