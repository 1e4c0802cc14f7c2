"""Intervals between repeats, and what may be said about a difference. Student's t, without a library for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "same", "unknown"]


@dataclass(frozen=True)
class Interval:
    """`mean` of `n` repeats, and the interval that covers the true one at the asked level; None for n = 1."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Judged:
    """`ratio` of new to old with its interval, and what follows for a metric whose `better` direction is known."""

    verdict: Verdict
    ratio: float | None
    low: float | None
    high: float | None
    why: str


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean over independent repeats. `values` must not be empty."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, None, n)
    error = math.sqrt(_variance(values) / n) * t_quantile(1 - (1 - level) / 2, n - 1)
    return Interval(mean, mean - error, mean + error, n)


def judge(
    old: Sequence[float],
    new: Sequence[float],
    better: str,
    *,
    margin: float = 0.02,
    level: float = 0.95,
    looks: int = 1,
    among: int = 1,
) -> Judged:
    """Whether `new` differs from `old` by more than `margin` (0.02 is 2 %), at the given level.

    Welch's interval for the difference of the means of logarithms, which is the ratio of geometric means. All of it
    beyond 1, and the ratio past the margin: better or worse. Two one-sided tests within the margin: same. Otherwise
    unknown. `looks` is how often a sequential comparison may look: the error is divided among them (Bonferroni), as the
    error of a difference is among the numbers compared together, `among`: a sweep has dozens, and by chance one stands
    out.
    """
    if min(*old, *new, math.inf) <= 0:
        return Judged("unknown", None, None, None, "a value is zero or below; a ratio means nothing")
    if len(old) < 2 or len(new) < 2:
        return Judged("unknown", None, None, None, f"{min(len(old), len(new))} repeats show no spread; 2 is the least")
    a, b = [math.log(x) for x in old], [math.log(x) for x in new]
    center = math.fsum(b) / len(b) - math.fsum(a) / len(a)
    va, vb = _variance(a) / len(a), _variance(b) / len(b)
    error = one_sided = 0.0
    if va + vb > 0:
        freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
        error = math.sqrt(va + vb) * t_quantile(1 - (1 - level) / (2 * looks * among), freedom)
        one_sided = math.sqrt(va + vb) * t_quantile(1 - (1 - level) / looks, freedom)
    ratio, low, high = math.exp(center), math.exp(center - error), math.exp(center + error)
    floor, ceiling = 1 - margin, 1 / (1 - margin)
    if math.log(floor) <= center - one_sided and center + one_sided <= math.log(ceiling):
        return Judged("same", ratio, low, high, f"within {margin:.1%}")
    if (low > 1 and ratio > ceiling) or (high < 1 and ratio < floor):
        gained = (ratio > 1) == (better == "higher")
        return Judged("better" if gained else "worse", ratio, low, high, f"{ratio - 1:+.1%}")
    span = f"{low - 1:+.1%} to {high - 1:+.1%}" if low > 0.5 and high < 2 else "anything from half to double, or beyond"
    return Judged("unknown", ratio, low, high, f"{ratio - 1:+.1%}, could be {span}")


def mcnemar(only_old: int, only_new: int) -> float:
    """Exact two-sided p of a paired test: questions only one of two runs answered rightly, under a fair coin."""
    n, k = only_old + only_new, min(only_old, only_new)
    tail: float = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share; `asked` at least 1."""
    share, square = right / asked, z * z
    center = (share + square / (2 * asked)) / (1 + square / asked)
    half = z * math.sqrt(share * (1 - share) / asked + square / (4 * asked**2)) / (1 + square / asked)
    return max(0.0, center - half), min(1.0, center + half)


def t_quantile(p: float, freedom: float) -> float:
    """The value below which Student's t falls with probability `p` in (0.5, 1), by bisection of its distribution."""
    low, high = 0.0, 2.0
    while t_below(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def t_below(t: float, freedom: float) -> float:
    """P(T <= t) for t >= 0: 1 - I_x(v/2, 1/2) / 2 with x = v / (v + t²)."""
    return 1 - _beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny, c = 1e-300, 1.0
    d = 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * value


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
