"""Two stores against each other: verdicts with intervals, and a refusal where the question was not the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from perilune.bench.measure.metrics import BETTER
from perilune.bench.measure.statistics import Judged, Verdict, judge, mcnemar
from perilune.bench.store import Entry, by_point
from perilune.errors import ConfigError

_ORDER: tuple[Verdict, ...] = ("worse", "unknown", "better", "same")
_MEANING = {0: "nothing is worse", 1: "something is worse", 3: "not enough data to tell, more repeats would"}
METRICS = ("output_per_s", "ttft_p50", "tpot_p50", "e2e_response_p50")
"""Compared unless others are asked for. Medians, since repeats are few; p99 can be asked for."""


@dataclass(frozen=True)
class Row:
    """One metric of one point in both stores."""

    sweep: str
    label: str
    metric: str
    old: Sequence[float]
    new: Sequence[float]
    judged: Judged


@dataclass(frozen=True)
class Comparison:
    """`rows` for points both have; `missing` for points only one has."""

    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """1 if anything is worse, 3 if nothing is and something is undecided, else 0."""
        found = Counter(row.judged.verdict for row in self.rows)
        return 1 if found["worse"] else 3 if found["unknown"] else 0


def compare(
    old: Sequence[Entry],
    new: Sequence[Entry],
    metrics: Sequence[str] = METRICS,
    *,
    margin: float = 0.02,
    level: float = 0.95,
    looks: int = 1,
) -> Comparison:
    """Points are partners if they were asked the same in the same place of a sweep; flags and versions may differ.

    `level` holds for all rows together: equal servers are called worse in anything no oftener than it allows.

    Raises ConfigError if no point was asked the same in both.
    """
    for metric in metrics:
        if metric not in BETTER:
            raise ConfigError(f"{metric!r} is no metric with a better direction.", fix=f"Valid: {', '.join(BETTER)}.")
    before, after = _keyed(old), _keyed(new)
    common = [key for key in before if key in after]
    if not common:
        raise ConfigError(
            "The two have no point in common.",
            f"{len(before)} and {len(after)} points differ in workload, load, GPUs or place in the sweep.",
            "Measure both with the same sweep; only recipes may differ.",
        )
    rows, among = list[Row](), max(1, len(common) * len(metrics))
    for key in common:
        for metric in metrics:
            a, b = (_values(side[key], metric) for side in (before, after))
            if a and b:
                judged = judge(a, b, BETTER[metric], margin=margin, level=level, looks=looks, among=among)
                rows.append(Row(before[key][0]["sweep"], _label(before[key][0]), metric, a, b, judged))
        rows += _accuracy(before[key], after[key])
    missing = [f"only in {'old' if key in before else 'new'}: {_label((before.get(key) or after[key])[0])}"
               for key in [*before, *(k for k in after if k not in before)] if key not in common]  # fmt: skip
    return Comparison(tuple(rows), tuple(missing))


def lines(found: Comparison) -> list[str]:
    """One per number, the worst first, in columns; then what only one side has, and how many of each there are."""
    rows = sorted(found.rows, key=lambda row: _ORDER.index(row.judged.verdict))
    names = [f"{row.sweep} {row.label}" for row in rows]
    wide = [max(map(len, column), default=0) for column in (names, [row.metric for row in rows])]
    shown = [
        f"{row.judged.verdict:<7}  {name:<{wide[0]}}  {row.metric:<{wide[1]}}  {row.judged.why}"
        for name, row in zip(names, rows, strict=True)
    ]
    counts = Counter(row.judged.verdict for row in rows)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict])
    return [*shown, *found.missing, f"{tally}: {_MEANING[found.exit_code]}"]


def _keyed(entries: Sequence[Entry]) -> dict[tuple[str, ...], list[Entry]]:
    found: dict[tuple[str, ...], list[Entry]] = {}
    for runs in by_point(entries).values():
        first = runs[0]
        key = (first["asked"], str(first["gpus"]), first["sweep"], _label(first))
        if key in found:
            raise ConfigError(
                f"One store has two servers for {first['sweep']} {_label(first)}.",
                "Which of them is meant cannot be told.",
                "Keep results of different recipes in different folders.",
            )
        found[key] = runs
    return found


def _label(entry: Entry) -> str:
    return " ".join(f"{key}={value}" for key, value in entry["names"].items()) or "-"


def _values(runs: Sequence[Entry], metric: str) -> list[float]:
    return [run["metrics"][metric] for run in runs if metric in run["metrics"]]


def _accuracy(old: Sequence[Entry], new: Sequence[Entry]) -> list[Row]:
    """Paired by question: only those that one side alone got right tell anything."""
    before = {e["set"]: e for run in old for e in run["evals"]}
    rows = []
    for now in (e for run in new for e in run["evals"]):
        then = before.get(now["set"])
        if then is None:
            continue
        pairs = list(zip(then["outcomes"], now["outcomes"], strict=True))
        lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        p = mcnemar(lost, won)
        verdict = (
            "unknown" if p >= 0.05 and lost + won >= 6 else "same" if p >= 0.05 else "worse" if lost > won else "better"
        )
        ratio = now["share"] / then["share"] if then["share"] else None
        why = f"{won} won, {lost} lost of {now['asked']} questions, p = {p:.2g}"
        judged = Judged(verdict, ratio, None, None, why)  # type: ignore[arg-type]
        rows.append(
            Row(old[0]["sweep"], _label(old[0]), f"{now['kind']} right", [then["share"]], [now["share"]], judged)
        )
    return rows
