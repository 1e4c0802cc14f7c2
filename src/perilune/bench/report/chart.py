"""A small line and scatter chart as SVG. Hovering a mark shows its text; colours follow the page's, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 14, 46


@dataclass(frozen=True)
class Mark:
    """A value with its interval in y and the text shown on hovering."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """Marks of one colour, joined in order if `joined`."""

    name: str
    marks: Sequence[Mark]
    joined: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """`note` says in words what is drawn; it is read out where a chart cannot be seen."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    note: str = ""
    log_x: bool = False

    def svg(self) -> str:
        """The chart; empty if it has nothing to show."""
        marks = [mark for line in self.lines for mark in line.marks]
        if not marks:
            return ""
        across = _Scale([m.x for m in marks], _LEFT, _WIDTH - _RIGHT, self.log_x, zero=not self.log_x)
        ys = [v for m in marks for v in (m.y, m.low, m.high) if v is not None]
        up = _Scale(ys, _HEIGHT - _BOTTOM, _TOP, False, zero=True)
        label = escape(f"{self.title}: {self.note}")
        parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">']
        parts += self._grid(across, up)
        for k, line in enumerate(self.lines):
            parts += _drawn(line, k % 6, across, up)
        return "".join([*parts, "</svg>"])

    def _grid(self, across: _Scale, up: _Scale) -> list[str]:
        base, middle = _HEIGHT - _BOTTOM, (_TOP + _HEIGHT - _BOTTOM) / 2
        parts = []
        for value in up.ticks:
            y = up(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        for value in across.ticks:
            x = across(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{number(value)}</text>')
        for where, name in (
            (f'x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}"', self.x),
            (f'transform="translate(16 {middle}) rotate(-90)"', self.y),
        ):
            parts.append(f'<text class="name" {where} text-anchor="middle">{escape(name)}</text>')
        return parts


def number(value: float) -> str:
    """Three digits, with k and M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


class _Scale:
    """Values to pixels, with ticks at round numbers, or at powers of two on a logarithmic axis."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool, zero: bool) -> None:
        low, high = min(values), max(values)
        self._log = log and low > 0
        if self._log:
            first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
            step = max(1, (last - first) // 8 + 1)
            self.ticks = [2.0**k for k in range(first, max(last, first + 1) + 1, step)]
            low, high = self.ticks[0], max(high, self.ticks[-1])
        else:
            low = min(0.0, low) if zero else low
            self.ticks = _round_ticks(low, high)
            high = max(high, self.ticks[-1])
        self._low, self._high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> float:
        if self._log:
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / ((self._high - self._low) or 1.0)
        return self._start + share * (self._end - self._start)


def _round_ticks(low: float, high: float) -> list[float]:
    span = (high - low) or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if span / (unit * k) <= 6)
    first = math.floor(low / step)
    return [step * k for k in range(first, math.ceil((low + span) / step - 1e-9) + 1)]


def _drawn(line: Line, colour: int, across: _Scale, up: _Scale) -> list[str]:
    parts = []
    if line.joined and len(line.marks) > 1:
        points = " ".join(f"{across(m.x):.1f},{up(m.y):.1f}" for m in line.marks)
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline class="c{colour}" points="{points}"{dashes}/>')
    for mark in line.marks:
        x, y = across(mark.x), up(mark.y)
        if mark.low is not None and mark.high is not None:
            ends = f'y1="{up(mark.low):.1f}" y2="{up(mark.high):.1f}"'
            parts.append(f'<line class="c{colour}" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
        kind = "hollow" if mark.hollow else "full"
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="4.5"'
        parts.append(f'<circle class="c{colour} {kind}" {place}><title>{escape(mark.text)}</title></circle>')
    return parts
