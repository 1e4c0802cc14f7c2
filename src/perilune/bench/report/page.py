"""The page: charts, a table, provenance and definitions, in one file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from perilune.bench.measure.metrics import PER_REQUEST, PER_RUN
from perilune.bench.report.chart import number
from perilune.bench.report.figures import Measured, charts, measured
from perilune.bench.store import Entry
from perilune.errors import ConfigError


@dataclass(frozen=True)
class _Column:
    title: str
    metric: str
    scale: float = 1.0


_COLUMNS = (
    _Column("output tokens/s", "output_per_s"),
    _Column("per GPU", "output_per_s_gpu"),
    _Column("TTFT p50, ms", "ttft_p50", 1000),
    _Column("TPOT p50, ms", "tpot_p50", 1000),
    _Column("response p50, s", "e2e_response_p50"),
    _Column("response p99, s", "e2e_response_p99"),
    _Column("goodput, 1/s", "goodput"),
    _Column("cached", "hit_rate"),
)


def page(stores: Sequence[tuple[str, Sequence[Entry]]], title: str = "perilune bench") -> str:
    """HTML of every point of `stores`, pairs of a name and its entries. Raises ConfigError if there are none."""
    names = [name.rstrip("/").rpartition("/")[2] for name, _ in stores] if len(stores) > 1 else [""]
    points = [p for name, (_, entries) in zip(names, stores, strict=True) for p in measured(name, entries)]
    if not points:
        raise ConfigError("There are no results to report.", fix="`perilune bench run` makes some.")
    runs = [run for point in points for run in point.runs]
    states = Counter(run["verdict"]["status"] for run in runs)
    template = files("perilune.bench.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    return environment.from_string(template).render(
        title=title,
        points=points,
        runs=len(runs),
        states=sorted(states.items()),
        unscored=sum(bool(point.counted) and not point.accuracy() for point in points),
        charts=charts(points),
        columns=[column for column in _COLUMNS if any(point.of(column.metric) for point in points)],
        cell=_cell,
        provenance=_provenance,
        definitions=[*PER_REQUEST, *PER_RUN],
    )


def _cell(point: Measured, column: _Column) -> str:
    found = point.of(column.metric)
    if found is None:
        return "–"
    spread = "" if found.high is None else f" ± {number((found.high - found.mean) * column.scale)}"
    return f"{number(found.mean * column.scale)}{spread}"


def _provenance(point: Measured) -> str:
    first = point.first
    shown = {key: first[key] for key in ("server", "workload", "load", "slo", "labels", "bench")}
    return json.dumps(shown, indent=2, ensure_ascii=False)
