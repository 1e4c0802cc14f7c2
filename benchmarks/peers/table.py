"""Rows of the table: medians, ratios, targets; printed for people, written as JSON for the next comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

ENGINES = ("perilune", "llama_cpp", "transformers")
_HEAD = ("", "perilune", "llama.cpp", "ratio", "target", "limit", "of limit", "transformers")
_WIDTHS = (26, 10, 10, 7, 9, 10, 8, 12)
SMALLER_IS_BETTER = ("s", "GiB")


@dataclass(frozen=True)
class Row:
    """One measured thing. `samples` holds every value of every engine; a missing engine was not run.

    `target` bounds the ratio perilune / llama.cpp: from below for a rate, from above for seconds and bytes. `limit` is
    what the machine would allow, in the row's unit.
    """

    name: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    target: float | None = None
    limit: float | None = None

    def value(self, engine: str) -> float | None:
        """The median of an engine's samples."""
        found = self.samples.get(engine)
        return median(found) if found else None

    @property
    def smaller_is_better(self) -> bool:
        return self.unit in SMALLER_IS_BETTER

    @property
    def ratio(self) -> float | None:
        """perilune over llama.cpp, whichever direction is better."""
        ours, theirs = self.value("perilune"), self.value("llama_cpp")
        return ours / theirs if ours is not None and theirs else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing to compare with."""
        if self.ratio is None or self.target is None:
            return None
        return self.ratio <= self.target if self.smaller_is_better else self.ratio >= self.target

    @property
    def of_limit(self) -> float | None:
        """How much of the limit perilune reaches, 1 being all."""
        ours = self.value("perilune")
        if not ours or not self.limit:
            return None
        return self.limit / ours if self.smaller_is_better else ours / self.limit

    def as_json(self) -> dict[str, Any]:
        values = {engine: self.value(engine) for engine in ENGINES}
        found = {"ratio": self.ratio, "target": self.target, "reached": self.reached, "limit": self.limit}
        return {"name": self.name, "unit": self.unit, **values, **found, "samples": dict(self.samples)}


def as_json(machine: Any, about: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """The whole result; `machine` is a dataclass of what was measured of the machine."""
    return {"machine": dataclasses.asdict(machine), **about, "rows": [row.as_json() for row in rows]}


def heading() -> str:
    """The line above the rows."""
    return line(_HEAD)


def text(row: Row) -> str:
    """One line; a ratio that misses its target is marked."""
    sign = "≤" if row.smaller_is_better else "≥"
    target = "" if row.target is None else f"{sign} {row.target:.2f}" + (" no" if row.reached is False else "")
    ours, theirs, third = (number(row.value(engine)) for engine in ENGINES)
    limit, of_limit = number(row.limit), "" if row.of_limit is None else f"{row.of_limit:.0%}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return line((f"{row.name}, {row.unit}", ours, theirs, ratio, target, limit, of_limit, third))


def number(value: float | None) -> str:
    """Three digits that matter."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line(cells: Sequence[str], widths: Sequence[int] = _WIDTHS) -> str:
    """The first cell to the left, all others to the right."""
    first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return " ".join((cells[0].ljust(len(first)), *rest)).rstrip()
