"""What the report draws: stored runs grouped by point, their means with intervals, and the front of the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perilune.bench.measure.statistics import Interval, interval
from perilune.bench.report.chart import Chart, Line, Mark, number
from perilune.bench.store import Entry


@dataclass(frozen=True)
class Measured:
    """One point of one store: its runs, those that count among them, and means over these."""

    source: str
    runs: Sequence[Entry]

    @property
    def first(self) -> Entry:
        return self.runs[0]

    @property
    def series(self) -> str:
        """Store, sweep and the axes that are no load."""
        rest = [f"{k}={v}" for k, v in self.first["names"].items() if k not in ("conc", "rate")]
        return " ".join([self.source, self.first["sweep"], *rest])

    @property
    def label(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.first["names"].items()) or "-"

    @property
    def counted(self) -> list[Entry]:
        return [run for run in self.runs if run["verdict"]["status"] != "failed"]

    @property
    def status(self) -> str:
        """The worst of its runs."""
        found = {run["verdict"]["status"] for run in self.runs}
        return next(status for status in ("failed", "degraded", "valid") if status in found)

    @property
    def load(self) -> float | None:
        load = self.first["load"]
        found: float | None = load.get("conc") or load.get("rate")
        return found

    def of(self, metric: str) -> Interval | None:
        """Mean over the repeats that have the metric, with Student's interval."""
        values = [run["metrics"][metric] for run in self.counted if metric in run["metrics"]]
        return interval(values) if values else None

    def accuracy(self) -> list[dict[str, Any]]:
        return [each for run in self.runs for each in run["evals"]]


def measured(source: str, entries: Sequence[Entry]) -> list[Measured]:
    """Points in the order of their first run."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry["fingerprint"], []).append(entry)
    return [Measured(source, runs) for runs in found.values()]


def charts(points: Sequence[Measured]) -> list[Chart]:
    """Those that have something to show."""
    gpus = any(point.first["gpus"] for point in points)
    speed = "output_per_s_gpu" if gpus else "output_per_s"
    unit = "output tokens/s per GPU" if gpus else "output tokens/s"
    marks = [_mark(p, "interactivity", speed, 1.0, "tokens/s/user", unit) for p in points]
    front = pareto([mark for mark in marks if mark is not None])
    drawn = [
        Chart(
            "Throughput against interactivity", "interactivity: output tokens/s of one user", unit,
            [*_lines(points, "interactivity", speed, 1.0, "tokens/s/user", unit, joined=False),
             Line("best trade-offs", front, dashed=True)],
            "Up and to the right is better. The dashed line joins points no other beats in both. Hollow: degraded.",
        ),
        Chart(
            "Throughput over load", "requests open, or per second", unit,
            _lines(points, None, speed, 1.0, "", unit), "Bars are 95 % intervals over repeats.", log_x=True,
        ),
    ]  # fmt: skip
    for metric, title in (
        ("ttft_response", "Time to first token"),
        ("tpot", "Time per output token"),
        ("e2e_response", "Response time"),
    ):
        lines = [
            Line(f"{line.name} {name}", line.marks, dashed=dashed)
            for suffix, name, dashed in (("p50", "median", False), ("p99", "p99", True))
            for line in _lines(points, None, f"{metric}_{suffix}", 1000.0, "", f"ms ({name})")
        ]
        note = "Mean over repeats of each run's median and p99."
        drawn.append(Chart(f"{title} over load", "requests open, or per second", "ms", lines, note, log_x=True))
    return [chart for chart in drawn if any(line.marks for line in chart.lines)]


def pareto(marks: Sequence[Mark]) -> list[Mark]:
    """Marks that no other beats in both directions, by x."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (-m.x, -m.y)):
        if not best or mark.y > best[-1].y:
            best.append(mark)
    return best[::-1]


def _lines(
    points: Sequence[Measured], x: str | None, y: str, scale: float, x_unit: str, y_unit: str, joined: bool = True
) -> list[Line]:
    found: dict[str, list[Mark]] = {}
    for point in points:
        mark = _mark(point, x, y, scale, x_unit, y_unit)
        if mark is not None:
            found.setdefault(point.series, []).append(mark)
    return [Line(name, sorted(marks, key=lambda m: m.x), joined) for name, marks in found.items()]


def _mark(point: Measured, x: str | None, y: str, scale: float, x_unit: str, y_unit: str) -> Mark | None:
    across, up = None if x is None else point.of(x), point.of(y)
    at = across.mean if across is not None else point.load if x is None else None
    if at is None or up is None:
        return None
    unit = f"{number(at)} {x_unit}, " if x_unit else ""
    return Mark(
        at, up.mean * scale, f"{point.series} {point.label}: {unit}{number(up.mean * scale)} {y_unit}, n = {up.n}",
        None if up.low is None else max(0.0, up.low * scale), None if up.high is None else up.high * scale,
        hollow=point.status != "valid",
    )  # fmt: skip
