"""The page: charts, a table, provenance and definitions, in one file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from perilune.bench.measure.metrics import PER_REQUEST, PER_RUN
from perilune.bench.report.figures import Measured, charts, headlines, results
from perilune.bench.report.table import cell, columns
from perilune.bench.store import Entry


def page(stores: Sequence[tuple[str, Sequence[Entry]]], title: str = "perilune bench") -> str:
    """HTML of every point of `stores`, pairs of a name and its entries. Raises ConfigError if there are none."""
    points = results(stores)
    runs = [run for point in points for run in point.runs]
    states = Counter(run["verdict"]["status"] for run in runs)
    template = files("perilune.bench.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    return environment.from_string(template).render(
        title=title,
        subject=", ".join(dict.fromkeys(subject(point) for point in points)),
        points=points,
        runs=len(runs),
        states=sorted(states.items()),
        unscored=sum(bool(point.counted) and not point.accuracy() for point in points),
        heads=headlines(points),
        charts=charts(points),
        columns=columns(points),
        cell=cell,
        provenance=_provenance,
        definitions=[*PER_REQUEST, *PER_RUN],
    )


def subject(point: Measured) -> str:
    """What was measured, in three words: model, engine, hardware."""
    server = point.first["server"]
    model = point.first.get("model") or server["model"]
    return " ".join(word for word in (model, server["engine"], f"on {server['hardware']}") if word)


def _provenance(point: Measured) -> str:
    first = point.first
    shown = {key: first[key] for key in ("server", "workload", "load", "slo", "labels", "bench")}
    return json.dumps(shown, indent=2, ensure_ascii=False)
