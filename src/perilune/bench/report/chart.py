"""A small line and scatter chart as SVG. Hovering a mark shows its numbers, a click leads to where they are from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 14, 46
_TIP_LINE, _TIP_CHAR = 15, 6.1  # height of a line of a tip and width of a letter, in the chart's units
COLOURS = 6
_ROOM = 1.5  # times the highest mark: where an interval is cut off


@dataclass(frozen=True)
class Mark:
    """A value with its interval in y; `text` is shown on hovering, a line each, and `link` is an anchor of the page.
    `name` stands beside it."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    link: str = ""
    name: str = ""


@dataclass(frozen=True)
class Line:
    """Marks of one colour, joined in order if `joined`; `dots` are left out where there are many marks."""

    name: str
    marks: Sequence[Mark]
    colour: int = 0
    joined: bool = True
    dashed: bool = False
    dots: bool = True


@dataclass(frozen=True)
class Chart:
    """`note` says in words what is drawn; it is read out where a chart cannot be seen. `top` is where y ends."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    note: str = ""
    log_x: bool = False
    top: float | None = None

    def svg(self) -> str:
        """The chart; empty if it has nothing to show."""
        marks = [mark for line in self.lines for mark in line.marks]
        if not marks:
            return ""
        across = _Scale([m.x for m in marks], _LEFT, _WIDTH - _RIGHT, self.log_x, zero=not self.log_x)
        ys = [v for m in marks for v in (m.y, self.top) if v is not None]
        most = _ROOM * max(ys)  # two repeats have intervals so wide that nothing else could be seen
        ys += [min(m.high, most) for m in marks if m.high is not None]
        up = _Scale(ys, _HEIGHT - _BOTTOM, _TOP, False, zero=True)
        label = escape(f"{self.title}: {self.note}")
        parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">']
        parts += self._grid(across, up)
        for line in self.lines:
            parts += _drawn(line, across, up)
        for line in self.lines:  # above all that is drawn, so that no line crosses a tip
            parts += [_tip(mark, line.colour, across, up) for mark in line.marks if mark.text]
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
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{number(value)}</text>')
        for where, name in (
            (f'x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}"', self.x),
            (f'transform="translate(16 {middle}) rotate(-90)"', self.y),
        ):
            parts.append(f'<text class="name" {where} text-anchor="middle">{escape(name)}</text>')
        return parts


def number(value: float, digits: int = 3) -> str:
    """So many digits, with k and M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    whole = abs(value) >= 10**digits
    return f"{value:.0f}" if whole else f"{value:.{digits}g}"


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


def _drawn(line: Line, across: _Scale, up: _Scale) -> list[str]:
    parts, colour = [], f"c{line.colour % COLOURS}"
    if line.joined and len(line.marks) > 1:
        points = " ".join(f"{across(m.x):.1f},{up(m.y):.1f}" for m in line.marks)
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline class="{colour}" points="{points}"{dashes}/>')
    for mark in line.marks:
        x, y = across(mark.x), up(mark.y)
        if mark.low is not None and mark.high is not None:
            ends = f'y1="{up(mark.low):.1f}" y2="{max(float(_TOP), up(mark.high)):.1f}"'
            parts.append(f'<line class="{colour} bar" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
        if line.dots:
            kind = "hollow" if mark.hollow or line.dashed else "full"
            parts.append(f'<circle class="{colour} {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if mark.name:
            right = f'x="{x + 8:.1f}" y="{y - 7:.1f}"'
            beside = right if x < 0.8 * _WIDTH else f'x="{x - 8:.1f}" y="{y + 18:.1f}" text-anchor="end"'
            parts.append(f"<text {beside}>{escape(mark.name)}</text>")
    return parts


def _tip(mark: Mark, colour: int, across: _Scale, up: _Scale) -> str:
    """A wide invisible mark, and beside it a box of words that is shown while it is hovered over or in focus."""
    x, y, lines = across(mark.x), up(mark.y), mark.text.split("\n")
    width, height = max(map(len, lines)) * _TIP_CHAR + 16, len(lines) * _TIP_LINE + 10
    left = x + 10 if x + 10 + width < _WIDTH else max(0.0, x - 10 - width)
    top = min(max(0.0, y - height / 2), _HEIGHT - height)
    words = "".join(
        f'<text x="{left + 8:.1f}" y="{top + 16 + i * _TIP_LINE:.1f}">{escape(word)}</text>'
        for i, word in enumerate(lines)
    )
    side = "left" if left > x else "right"  # it grows away from the mark where letters are larger
    box = f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" rx="5"/>'
    target = f'<circle class="c{colour % COLOURS} target" cx="{x:.1f}" cy="{y:.1f}" r="9"/>'
    shown = f'{target}<g class="box {side}">{box}{words}</g>'
    return f'<a class="tip" href="#{mark.link}">{shown}</a>' if mark.link else f'<g class="tip">{shown}</g>'
