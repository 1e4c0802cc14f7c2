"""The points as a table: the columns that have values, and the same as Markdown, for a pull request or a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perilune.bench.report.chart import number
from perilune.bench.report.figures import Measured, headlines, results
from perilune.bench.store import Entry


@dataclass(frozen=True)
class Column:
    """`metric` times `scale`."""

    title: str
    metric: str
    scale: float = 1.0


_COLUMNS = (
    Column("output tokens/s", "output_per_s"),
    Column("per GPU", "output_per_s_gpu"),
    Column("TTFT p50, ms", "ttft_p50", 1000),
    Column("TPOT p50, ms", "tpot_p50", 1000),
    Column("response p50, s", "e2e_response_p50"),
    Column("response p99, s", "e2e_response_p99"),
    Column("goodput, 1/s", "goodput"),
    Column("queued, s", "queue"),
    Column("J/token", "joules_per_token"),
    Column("cached, %", "hit_rate", 100),
    Column("handed over, %", "handed_over", 100),
)


def columns(points: Sequence[Measured]) -> list[Column]:
    """Those that any point has a value for, above zero."""
    return [c for c in _COLUMNS if any((found := point.of(c.metric)) and found.mean for point in points)]


def cell(point: Measured, column: Column) -> str:
    """Mean over repeats ± half of the interval; a dash for what is absent."""
    found = point.of(column.metric)
    if found is None:
        return "–"
    half = 0.0 if found.high is None else (found.high - found.mean) * column.scale
    spread = f" ± {number(half, 2)}" if half else ""
    return f"{number(found.mean * column.scale)}{spread}"


def markdown(stores: Sequence[tuple[str, Sequence[Entry]]], title: str = "perilune bench") -> str:
    """The headlines, one row per point, and why a run does not count or not fully. Raises ConfigError as `results`."""
    points = results(stores)
    shown = columns(points)
    lines = [f"# {title}", "", *(f"* {h.title}: **{h.value}** ({h.of})" for h in headlines(points)), ""]
    head = ["point", "verdict", "runs", *(column.title for column in shown), "right"]
    lines += [_row(head), _row(["---"] * 3 + ["---:"] * len(shown) + ["---"])]
    for point in points:
        right = ", ".join(f"{e['kind']} {e['share']:.0%} ({e['low']:.0%}–{e['high']:.0%})" for e in point.accuracy())
        counted = f"{len(point.counted)} of {len(point.runs)}"
        name = f"{point.series} {point.label}".strip()
        lines.append(
            _row([name, point.status, counted, *(cell(point, column) for column in shown), right or "not asked"])
        )
    lines += ["", "Mean over repeats ± half of the 95 % interval. Percentiles are means of each run's own."]
    reasons = [
        f"* {point.series} {point.label} run {run['repeat']}, {run['verdict']['status']}: {reason}"
        for point in points for run in point.runs for reason in run["verdict"]["reasons"]
    ]  # fmt: skip
    return "\n".join([*lines, *([""] if reasons else []), *reasons, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
