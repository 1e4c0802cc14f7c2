"""Points as people and programs read them, and what a change of a file does to a plan."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from perilune.bench.plan.point import Point
from perilune.bench.spec.lengths import mean
from perilune.bench.spec.workload import Closed, Ramp, Random, Replay
from perilune.units import format_seconds


def requests_of(point: Point) -> int | None:
    """Requests of one run; None where the trace decides."""
    match point.load:
        case Closed(conc=conc, requests=requests, waves=waves):
            return conc * waves if requests is None else requests
        case Ramp(start=start, stop=stop, seconds=seconds):
            return round((start + stop) / 2 * seconds)
        case Replay():
            return None
        case rated:
            return rated.requests


def seconds_of(point: Point) -> float | None:
    """Seconds in which one run sends its requests; None where the server's speed decides."""
    match point.load:
        case Ramp(seconds=seconds):
            return seconds
        case Closed() | Replay():
            return None
        case rated:
            return rated.requests / rated.rate


def run_seconds(point: Point, took: Mapping[str, float]) -> float | None:
    """Seconds of one run: what it `took` before, by fingerprint, else the time it sends for; None if unknown."""
    return took.get(point.fingerprint, seconds_of(point))


def total_time(points: Sequence[Point], took: Mapping[str, float]) -> str:
    """All repeats of all points in words, without the starts of servers."""
    known = [(run_seconds(point, took), point.sweep.repeats) for point in points]
    total = sum(seconds * repeats for seconds, repeats in known if seconds is not None)
    unknown = sum(seconds is None for seconds, _ in known)
    if unknown == len(points):
        return "time as the servers' speed decides"
    return f"{format_seconds(total)}" + (f" and what the {unknown} points without a known time take" if unknown else "")


def as_json(point: Point, took: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
    """Everything the plan knows of a point; `took` has the seconds of earlier runs by fingerprint."""
    server, workload = point.server, point.workload
    return {
        "fingerprint": point.fingerprint,
        "sweep": point.name,
        "names": dict(point.names),
        "labels": dict(point.sweep.labels),
        "server": {
            **server.identity,
            "fingerprint": server.fingerprint,
            "gpus": server.gpus,
            "rules": [{"when": f.when, "why": f.why, "argv": dict(f.argv), "env": dict(f.env)} for f in server.fired],
        },
        **point.asked,
        "repeats": point.sweep.repeats,
        "requests": requests_of(point),
        "send_seconds": seconds_of(point),
        "run_seconds": run_seconds(point, took),
        "mean_input_tokens": mean(workload.input) if isinstance(workload, Random) else None,
        "mean_output_tokens": mean(workload.output) if isinstance(workload, Random) else None,
        "evals": [each.model_dump() for each in point.evals],
    }


def explain(point: Point) -> Iterator[str]:
    """One point in lines: command, environment, the rules that held and why, what is asked how often."""
    server = point.server
    yield f"{point.fingerprint}  {point.name}  {point.label}"
    if server.target is not None:
        yield f"  uses     {server.target.url}, which runs already"
    else:
        yield f"  starts   {shlex.join(server.argv)} --{server.port_flag} <free port>"
        for key, value in server.env.items():
            yield f"  env      {key}={value}"
    for part in server.parts:
        variables = "".join(f"{key}={value} " for key, value in part.env.items())
        yield f"  {part.role:<8} {variables}{shlex.join(part.argv)} --port <free port>"
    for fired in server.fired:
        sets = [*(f"--{k}={v}" for k, v in fired.argv.items()), *(f"{k}={v}" for k, v in fired.env.items())]
        yield f"  rule     {fired.when}: {', '.join(sets)} - {fired.why}"
    yield (
        f"  devices  {server.gpus} of {server.hardware.gpus} GPUs ({server.hardware.name})"
        if (server.hardware.gpus)
        else f"  devices  the CPU of {server.hardware.name}"
    )
    count, seconds = requests_of(point), seconds_of(point)
    timing = "" if seconds is None else f", sent in {seconds:.0f} s"
    yield f"  load     {_said(point.load)}: {count or 'the trace decides how many'} requests{timing}"
    yield f"  asks     {_said(point.workload)}"
    yield f"  repeats  {point.sweep.repeats}, server {server.fingerprint}, asked {point.asked_fingerprint}"


def _said(model: Any) -> str:
    """Kind, and what differs from the defaults."""
    fields = model.model_dump(mode="json", exclude_defaults=True)
    kind = fields.pop("kind", model.kind)
    return " ".join([kind, *(f"{key}={value}" for key, value in fields.items())])


@dataclass(frozen=True)
class Difference:
    """`kept` points keep their results; `changed` ones come in pairs, old and new, with what differs."""

    added: tuple[Point, ...]
    removed: tuple[Point, ...]
    kept: tuple[Point, ...]
    changed: tuple[tuple[Point, Point, tuple[str, ...]], ...]


def difference(old: Sequence[Point], new: Sequence[Point]) -> Difference:
    """What a change of a file does. Points with the same sweep and axis values are compared field by field."""
    before = {point.fingerprint: point for point in old}
    after = {point.fingerprint: point for point in new}
    gone = {(p.name, p.label): p for f, p in before.items() if f not in after}
    added, changed = [], []
    for print_, point in after.items():
        if print_ in before:
            continue
        partner = gone.pop((point.name, point.label), None)
        if partner is None:
            added.append(point)
        else:
            changed.append((partner, point, tuple(_changes(partner.identity, point.identity))))
    kept = tuple(point for print_, point in after.items() if print_ in before)
    return Difference(tuple(added), tuple(gone.values()), kept, tuple(changed))


def _changes(old: Any, new: Any, route: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{route}.{key}" if route else key)
    elif isinstance(old, list) and isinstance(new, list) and all(isinstance(word, str) for word in old + new):
        gone, came = [w for w in old if w not in new], [w for w in new if w not in old]
        if old != new:
            yield f"{route}: -{shlex.join(gone)} +{shlex.join(came)}"
    elif old != new:
        yield f"{route}: {old!r} -> {new!r}"
