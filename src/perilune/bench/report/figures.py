"""What the report draws: stored runs grouped by point, their means with intervals, and the front of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perilune.bench.measure.statistics import Interval, interval
from perilune.bench.report.chart import COLOURS, Chart, Line, Mark, number
from perilune.bench.store import Entry
from perilune.errors import ConfigError
from perilune.units import GIB

_LOADS = {"conc": "requests open at once", "rate": "requests per second"}
_BARS = "Bars are 95 % intervals over repeats, cut off where they leave the chart; hollow marks are degraded runs."


@dataclass(frozen=True)
class Measured:
    """One point of one store: its runs, those that count among them, and means over these. `shared` if all points are
    of one sweep, whose name then tells nothing."""

    source: str
    runs: Sequence[Entry]
    shared: bool = False

    @property
    def first(self) -> Entry:
        return self.runs[0]

    @property
    def series(self) -> str:
        """Store, sweep and the axes that are no load."""
        rest = [f"{k}={v}" for k, v in self.first["names"].items() if k not in ("conc", "rate")]
        sweep = [] if self.shared and rest else [self.first["sweep"]]
        return " ".join([self.source, *sweep, *rest]).strip()

    @property
    def label(self) -> str:
        """The axes that are load: with the series, all of them."""
        return " ".join(f"{k}={v}" for k, v in self.first["names"].items() if k in ("conc", "rate"))

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
        """Mean over the repeats that have the metric, with Student's interval; of one run, with the run's own."""
        having = [run for run in self.counted if metric in run["metrics"]]
        if len(having) == 1 and (own := having[0].get("intervals", {}).get(metric)) is not None:
            return Interval(having[0]["metrics"][metric], own[0], own[1], 1)
        return interval([run["metrics"][metric] for run in having]) if having else None

    def accuracy(self) -> list[dict[str, Any]]:
        return [each for run in self.runs for each in run["evals"]]


def measured(source: str, entries: Sequence[Entry]) -> list[Measured]:
    """Points in the order of their first run."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry["fingerprint"], []).append(entry)
    return [Measured(source, runs) for runs in found.values()]


def results(stores: Sequence[tuple[str, Sequence[Entry]]]) -> list[Measured]:
    """The points of every store, pairs of a name and its entries. Raises ConfigError if there are none."""
    names = [name.rstrip("/").rpartition("/")[2] for name, _ in stores] if len(stores) > 1 else [""]
    points = [p for name, (_, entries) in zip(names, stores, strict=True) for p in measured(name, entries)]
    if not points:
        raise ConfigError("There are no results to report.", fix="`perilune bench run` makes some.")
    one = len({point.first["sweep"] for point in points}) == 1 and all(len(p.first["names"]) > 1 for p in points)
    return [replace(point, shared=one) for point in points]


@dataclass(frozen=True)
class Headline:
    """A number to begin with: what it is, and of which point."""

    title: str
    value: str
    of: str
    anchor: str


def headlines(points: Sequence[Measured]) -> list[Headline]:
    """The best of each that was measured, among points with a valid run if there are any; repeats are averaged."""
    points = [p for p in points if any(run["verdict"]["status"] == "valid" for run in p.runs)] or points
    speed = "output_per_s_gpu" if any(point.first["gpus"] for point in points) else "output_per_s"
    unit = "tokens/s per GPU" if speed.endswith("gpu") else "tokens/s"
    found = []
    for title, metric, scale, what, most in (
        ("Highest output", speed, 1.0, unit, True),
        ("Fastest for one user", "interactivity", 1.0, "tokens/s", True),
        ("Soonest first token, median", "ttft_response_p50", 1000.0, "ms", False),
        ("Most of prompts from the cache", "hit_rate", 100.0, "%", True),
    ):
        of = [(mean.mean, point) for point in points if (mean := point.of(metric)) is not None and mean.mean > 0]
        if of:
            value, point = (max if most else min)(of, key=lambda pair: pair[0])
            where = f"{point.series} {point.label}".strip()
            found.append(Headline(title, f"{number(value * scale)} {what}", where, point.first["fingerprint"]))
    return found


def charts(points: Sequence[Measured]) -> list[Chart]:
    """Those that have something to show. A series has one colour in all of them."""
    series = list(dict.fromkeys(point.series for point in points))
    draw = _Drawing({name: index for index, name in enumerate(series)})
    gpus = any(point.first["gpus"] for point in points)
    speed = "output_per_s_gpu" if gpus else "output_per_s"
    unit = "output tokens/s per GPU" if gpus else "output tokens/s"
    marks = [(p, mark) for p in points if (mark := draw.mark(p, "interactivity", speed, 1.0, unit)) is not None]
    front = pareto([replace(mark, text="", name=p.label, low=None, high=None) for p, mark in marks])
    load = " or ".join(dict.fromkeys(_LOADS["conc" if "conc" in p.first["load"] else "rate"] for p in points))
    drawn = [
        Chart(
            "Throughput against interactivity", "output tokens/s of one user", unit,
            [*draw.lines(points, "interactivity", speed, 1.0, unit, joined=False),
             Line("best trade-offs", front, colour=COLOURS - 1, dashed=True, dots=False)],
            "Up and to the right is better. The dashed line joins points no other beats in both. " + _BARS,
        ),
        Chart(
            "Throughput over load", load, unit,
            draw.lines(points, None, speed, 1.0, unit), _BARS, log_x=True,
        ),
    ]  # fmt: skip
    for metric, title in (
        ("ttft_response", "Time to first token"),
        ("tpot", "Time per output token"),
        ("e2e_response", "Response time"),
    ):
        lines = [
            Line("" if dashed else line.name, line.marks, line.colour, dashed=dashed)
            for suffix, name, dashed in (("p50", "median", False), ("p99", "p99", True))
            for line in draw.lines(points, None, f"{metric}_{suffix}", 1000.0, f"ms ({name})")
        ]
        note = "Solid: median. Dashed: p99. Means over repeats of each run's own, with 95 % intervals."
        drawn.append(Chart(f"{title} over load", load, "milliseconds", lines, note, log_x=True))
    most = [max(group, key=lambda p: p.load or 0.0) for group in _grouped(points).values()]
    note = "Solid: in use. Dashed: kept of earlier prompts, which makes way. Each at its highest load, last repeat."
    drawn += [
        Chart("Cache over time", "seconds of the load", "% of the cache",
              [*draw.times(most, "cache_used", 100.0), *draw.times(most, "cache_kept", 100.0, dashed=True)],
              note, top=100.0),
        Chart("Memory over time", "seconds of the load", "GiB of the server's processes",
              draw.times(most, "memory", 1 / GIB),
              "Resident; what processes share is counted in each. Each at its highest load, last repeat."),
        Chart("Accuracy beside speed", unit, "% right", draw.accuracy(points, speed, unit),
              "Wilson's 95 % intervals. Right answers to each question set, at the load the speed was measured at.",
              top=100.0),
    ]  # fmt: skip
    return [chart for chart in drawn if any(line.marks for line in chart.lines)]


def _runs(found: Interval) -> str:
    return f"{found.n} runs" if found.n > 1 else "1 run" if found.high is None else "1 run, interval within it"


def _grouped(points: Sequence[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for point in points:
        found.setdefault(point.series, []).append(point)
    return found


def pareto(marks: Sequence[Mark]) -> list[Mark]:
    """Marks that no other beats in both directions, by x."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (-m.x, -m.y)):
        if not best or mark.y > best[-1].y:
            best.append(mark)
    return best[::-1]


@dataclass(frozen=True)
class _Drawing:
    """Points to marks and lines; `colours` by series."""

    colours: Mapping[str, int]

    def lines(
        self, points: Sequence[Measured], x: str | None, y: str, scale: float, unit: str, joined: bool = True
    ) -> list[Line]:
        found: dict[str, list[Mark]] = {}
        for point in points:
            mark = self.mark(point, x, y, scale, unit)
            if mark is not None:
                found.setdefault(point.series, []).append(mark)
        return [
            Line(name, sorted(marks, key=lambda m: m.x), self.colours[name], joined) for name, marks in found.items()
        ]

    def mark(self, point: Measured, x: str | None, y: str, scale: float, unit: str) -> Mark | None:
        across, up = None if x is None else point.of(x), point.of(y)
        at = across.mean if across is not None else point.load if x is None else None
        if at is None or up is None:
            return None
        spread = "" if up.high is None else f" ± {number((up.high - up.mean) * scale, 2)}"
        user = "" if across is None else f"\n{number(at)} tokens/s for one user"
        value = f"{number(up.mean * scale)}{spread} {unit}"
        return Mark(
            at, up.mean * scale, f"{point.series} {point.label}\n{value}{user}\n{_runs(up)}, {point.status}",
            None if up.low is None else max(0.0, up.low * scale), None if up.high is None else up.high * scale,
            hollow=point.status != "valid", link=point.first["fingerprint"],
        )  # fmt: skip

    def times(self, points: Sequence[Measured], key: str, scale: float, dashed: bool = False) -> list[Line]:
        """One line per point that was watched; only where it was above zero at all."""
        found = []
        for point in points:
            rows = (point.counted or [{}])[-1].get("timeline", [])
            seen = [(row["at"], row[key] * scale) for row in rows if key in row]
            if len(seen) > 1 and any(value for _, value in seen):
                name = f"{point.series} {point.label}".strip()
                marks = [Mark(at, value, f"{name}\n{at:.0f} s: {number(value)}") for at, value in seen]
                found.append(Line("" if dashed else name, marks, self.colours[point.series], dashed=dashed, dots=False))
        return found

    def accuracy(self, points: Sequence[Measured], speed: str, unit: str) -> list[Line]:
        found: dict[tuple[str, str], list[Mark]] = {}
        for point in points:
            across = point.of(speed)
            for each in point.accuracy():
                if across is not None:
                    text = f"{point.series} {point.label}\n{each['kind']}: {each['right']} of {each['asked']} right"
                    mark = Mark(
                        across.mean, 100 * each["share"], f"{text}\n{number(across.mean)} {unit}", 100 * each["low"],
                        100 * each["high"], hollow=each["passed"] is not True, link=point.first["fingerprint"],
                    )  # fmt: skip
                    found.setdefault((point.series, each["kind"]), []).append(mark)
        kinds = list(dict.fromkeys(kind for _, kind in found))
        return [
            Line(f"{series} {kind}", marks, self.colours[series] + kinds.index(kind), joined=False)
            for (series, kind), marks in found.items()
        ]
