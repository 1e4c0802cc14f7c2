"""Memory over context, one curve per concurrency, as an SVG picture: where each meets the limit is what fits.

Every point is a whole plan, so the picture shows what `perilune plan` prints and the engine allocates.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from perilune.plan.plan import Plan
from perilune.units import GIB, format_bytes

CONCURRENCIES = (1, 2, 4, 8, 16)
SMALLEST = 1024

_WIDTH, _HEIGHT = 960, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 150, 76, 64
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6f00", "#56b4e9")  # told apart without red and green
_STYLE = """\
text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1b1f24 } .title { font-size: 17px; font-weight: 600 }
.dim { fill: #6a737d } .grid { stroke: #d8dee4 } .limit { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 6 4 }
.ground { fill: #fff } .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .dim { fill: #8b949e } .grid { stroke: #30363d } .ground { fill: #0d1117 }
}"""


@dataclass(frozen=True)
class Curve:
    """Total bytes of `concurrency` sequences at each context; `reach` is the largest context that fits, 0 if none."""

    concurrency: int
    points: tuple[tuple[int, int], ...]
    reach: int


def curves(plan_of: Callable[[int, int], Plan], max_context: int, concurrencies: Iterable[int]) -> list[Curve]:
    """`plan_of(context, concurrency)` is asked at every power of two from 1,024 to the model's limit, and there."""
    contexts = [SMALLEST << power for power in range(64) if SMALLEST << power < max_context] + [max_context]
    found = []
    for concurrency in sorted(set(concurrencies)):
        plans = [plan_of(context, concurrency) for context in contexts]
        points = tuple((plan.context, plan.total_bytes) for plan in plans)
        found.append(Curve(concurrency, points, plans[0].max_context))
    return found


def picture(title: str, plan: Plan, found: list[Curve]) -> str:
    """The SVG text. `plan` gives weights and limit; contexts are drawn on a logarithmic axis, bytes on a linear one."""
    contexts = [context for context, _ in found[0].points]
    top = 1.3 * max(plan.memory_bytes, plan.weights_bytes)

    def x(context: int) -> float:
        low, high = math.log2(contexts[0]), math.log2(max(contexts[-1], contexts[0] + 1))
        return _LEFT + (math.log2(context) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(size: float) -> float:
        return _HEIGHT - _BOTTOM - min(size, top) / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{_HEIGHT}"/>',
        _text(_LEFT, 32, title, "title"),
        _text(_LEFT, 54, f"memory over context; weights {format_bytes(plan.weights_bytes)}, {plan.dtype}", "dim"),
    ]
    for size in _ticks(top):
        parts.append(_line(_LEFT, y(size), _WIDTH - _RIGHT, y(size), "grid"))
        parts.append(_text(_LEFT - 8, y(size) + 4, format_bytes(size), "dim", "end"))
    for context in contexts:
        parts.append(_text(x(context), _HEIGHT - _BOTTOM + 22, _tokens(context), "dim", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "tokens per sequence", "dim", "middle"))
    limit = y(plan.memory_bytes)
    parts.append(_line(_LEFT, limit, _WIDTH - _RIGHT, limit, "limit"))
    whose = textwrap.shorten(plan.because["memory_bytes"], 90, placeholder=" …")
    parts.append(_text(_LEFT + 6, limit - 7, f"{format_bytes(plan.memory_bytes)}: {whose}"))
    free = float(_HEIGHT)  # labels at the right edge, from the bottom up, never on top of each other
    for index, curve in enumerate(found):
        colour = _COLOURS[index % len(_COLOURS)]
        shown = _within(_bent(curve.points), top)
        path = " ".join(f"{x(context):.1f},{y(size):.1f}" for context, size in shown)
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{path}"/>')
        if 0 < curve.reach < contexts[-1] and curve.reach >= contexts[0]:
            parts.append(f'<circle cx="{x(curve.reach):.1f}" cy="{limit:.1f}" r="4.5" fill="{colour}"/>')
        free = min(free - 17, y(shown[-1][1]) + 4) if shown else free
        label = f"{curve.concurrency} x {_tokens(curve.reach)}" if curve.reach else f"{curve.concurrency}: does not fit"
        parts.append(f'<text x="{_WIDTH - _RIGHT + 10}" y="{free:.1f}" style="fill:{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _bent(points: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """More points between those that are given: memory is linear in context, which a logarithmic axis bends."""
    found = [points[0]]
    for (before, low), (after, high) in itertools.pairwise(points):
        steps = range(1, 9)
        found += [(before + (after - before) * i // 8, low + (high - low) * i // 8) for i in steps]
    return found


def _within(points: list[tuple[int, int]], top: float) -> list[tuple[int, float]]:
    """The part of a curve below `top`, with the point where it leaves."""
    shown: list[tuple[int, float]] = []
    for context, size in points:
        if size > top:
            if shown:
                before, below = shown[-1]
                shown.append((int(before + (context - before) * (top - below) / (size - below)), top))
            break
        shown.append((context, size))
    return shown


def _ticks(top: float) -> list[int]:
    """Five to ten round sizes from 0."""
    step = next((unit << power for unit in (GIB >> 10,) for power in range(40) if top / (unit << power) <= 9), GIB)
    return [step * index for index in range(int(top / step) + 1)]


def _tokens(count: int) -> str:
    """`1048576` -> `1M`, `2048` -> `2k`, in powers of 1,024; others as they are."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if count >= size:
            return f"{count // size}{unit}" if count % size == 0 else f"{count / size:.1f}{unit}"
    return str(count)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
