"""The highest load that keeps an SLO, by bisection. Every load tried is an ordinary run in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perilune.bench.plan.expand import expand
from perilune.bench.plan.point import Point
from perilune.bench.progress import Meter
from perilune.bench.run import run
from perilune.bench.selfcheck import SelfCheck
from perilune.bench.spec.load import Loaded
from perilune.bench.store import Store
from perilune.errors import ConfigError


@dataclass(frozen=True)
class Tried:
    """One load and the share of its requests that kept the SLO, the mean over repeats; None if its runs failed."""

    load: int
    good: float | None


def highest(keeps: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest load in [low, high] that `keeps`, if all below it do; None if not even `low` does.

    Doubles from `low` until one does not, then halves the gap: about 2·log2(high / low) loads are tried.
    """
    if not keeps(low):
        return None
    good = low
    bad = high + 1
    while good < high:
        step = min(good * 2, high)
        if keeps(step):
            good = step
        else:
            bad = step
            break
    while bad - good > 1 and good < high:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if keeps(middle) else (good, middle)
    return good


def search(
    loaded: Loaded,
    sweep: str,
    axis: str,
    low: int,
    high: int,
    share: float,
    store: Store,
    meter: Meter,
    facts: dict[str, Any] | None = None,
) -> tuple[int | None, list[Tried]]:
    """The highest `axis` (conc or rate) at which at least `share` of requests keep the sweep's SLO, and all it tried.

    Raises ConfigError for a sweep without an SLO, or with more than one server or workload.
    """  # fmt: skip
    tried, check = list[Tried](), SelfCheck()

    def keeps(load: int) -> bool:
        point = at(loaded, sweep, axis, load, facts)
        run([point], store, meter, check=check)
        runs = [e for e in store.entries() if e["fingerprint"] == point.fingerprint]
        values = [e["metrics"]["good"] for e in runs if e["verdict"]["status"] != "failed" and "good" in e["metrics"]]
        good = sum(values) / len(values) if values and len(values) == len(runs) else None
        tried.append(Tried(load, good))
        return good is not None and good >= share

    return highest(keeps, low, high), tried


def at(loaded: Loaded, sweep: str, axis: str, load: int, facts: dict[str, Any] | None = None) -> Point:
    """The sweep's one point with `axis` set to `load`."""
    if axis not in ("conc", "rate"):
        raise ConfigError(f"{axis!r} is no load.", fix="Search over conc or rate.")
    found = loaded.file.sweeps.get(sweep)
    if found is None or isinstance(found.axes, list):
        raise ConfigError(f"{sweep!r} is no sweep that can be searched.", fix="Name a sweep with one product of axes.")
    if not found.slo.model_dump(exclude_none=True):
        raise loaded.wrong(("sweeps", sweep), "a search needs an slo")
    changed = found.model_copy(update={"axes": {**found.axes, axis: load}})
    file = loaded.file.model_copy(update={"sweeps": {sweep: changed}})
    points = expand(Loaded(file, loaded.source), sweep, facts)
    if len(points) != 1:
        raise loaded.wrong(("sweeps", sweep), f"a search needs one point beside {axis}; here are {len(points)}")
    return points[0]
