"""Rows of the table: time on the device beside its limit and beside fla-core, or tokens per second of a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from peers.table import line, number

_HEAD = ("", "perilune", "limit", "of limit", "fla-core", "ratio", "target")
_WIDTHS = (46, 10, 10, 8, 10, 7, 28)


@dataclass(frozen=True)
class Target:
    """At least `least` of what `of` names; `found` is what there was, None if it could not be told."""

    of: str
    least: float
    found: float | None

    @property
    def reached(self) -> bool | None:
        return None if self.found is None else self.found >= self.least

    @property
    def text(self) -> str:
        verdict = "" if self.found is None else f", {'yes' if self.reached else 'no'} ({self.found:.2f})"
        return f"≥ {self.least:g} {self.of}{verdict}"


@dataclass(frozen=True)
class Row:
    """One measured thing in `unit`: µs or an error, of which less is better, or tokens/s. `limit` is what the device
    would allow, `peer` what fla-core takes for the same."""

    name: str
    unit: str
    samples: Sequence[float]
    limit: float | None = None
    peer: Sequence[float] = ()
    target: Target | None = None

    @property
    def value(self) -> float:
        return median(self.samples)

    @property
    def of_limit(self) -> float | None:
        """1 is all."""
        return self._better(self.limit) if self.limit else None

    @property
    def ratio(self) -> float | None:
        """How many times better than fla-core."""
        return self._better(median(self.peer)) if self.peer else None

    def _better(self, other: float) -> float:
        return self.value / other if self.unit == "tokens/s" else other / self.value

    def as_json(self) -> dict[str, Any]:
        target = None if self.target is None else {**asdict(self.target), "reached": self.target.reached}
        found = {"of_limit": self.of_limit, "fla_core": median(self.peer) if self.peer else None, "ratio": self.ratio}
        samples = {"samples": list(self.samples), "fla_core_samples": list(self.peer)}
        value = {"name": self.name, "unit": self.unit, "perilune": self.value, "limit": self.limit}
        return {**value, **found, "target": target, **samples}


def heading() -> str:
    return line(_HEAD, _WIDTHS)


def text(row: Row) -> str:
    """One line of the table."""
    share = "" if row.of_limit is None else f"{row.of_limit:.0%}"
    peer = number(median(row.peer)) if row.peer else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    target = "" if row.target is None else row.target.text
    return line((f"{row.name}, {row.unit}", number(row.value), number(row.limit), share, peer, ratio, target), _WIDTHS)
