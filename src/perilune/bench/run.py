"""Runs a plan: servers shared by their points, repeats interleaved, each run stored before the next begins."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import msgspec

from perilune import __version__
from perilune.bench.evals.ask import score
from perilune.bench.launch.child import Started, started
from perilune.bench.load.client import Goal
from perilune.bench.load.drive import Driven
from perilune.bench.load.http import Address
from perilune.bench.load.prompts import build, warmups, words
from perilune.bench.load.record import Ask, Record
from perilune.bench.load.workers import ClientError, send
from perilune.bench.measure.bootstrap import intervals
from perilune.bench.measure.metrics import summary
from perilune.bench.measure.steady import window
from perilune.bench.measure.verdict import Verdict, builtins, failed, judge_run
from perilune.bench.plan.point import Point
from perilune.bench.progress import Meter
from perilune.bench.scrape import HANDED_OVER, scrape
from perilune.bench.selfcheck import SelfCheck
from perilune.bench.spec.workload import Closed
from perilune.bench.store import Entry, Store, without_secrets
from perilune.bench.watch import Watcher
from perilune.deploy.failures import EngineFailedError
from perilune.errors import ConfigError


def run(
    points: Sequence[Point],
    store: Store,
    meter: Meter,
    secrets: dict[str, str] | None = None,
    check: SelfCheck | None = None,
) -> list[Entry]:
    """Measures what `store` does not have yet; returns what this call added. `meter` is told how it goes.

    With `check`, the client is tried against the null server at each run's load. A server that does not start fails
    its points and no others. KeyboardInterrupt and SIGTERM end servers too.
    """
    added: list[Entry] = []
    done = store.done()
    meter.total(sum(1 for _ in _interleaved(list(points), done)))
    with _sigterm_interrupts():
        for fingerprint, group in groupby(sorted(points, key=_server), key=_server):
            todo = list(_interleaved(list(group), done))
            if not todo:
                continue
            name = _server_name(todo[0][0])
            meter.say(f"{name}: {len(todo)} {'run' if len(todo) == 1 else 'runs'}, server {fingerprint}")
            meter.begin(f"{name} starts")
            log = store.folder / "logs" / f"{fingerprint}.log"
            for entry, records in _on_server(todo, log, meter, secrets, check):
                store.append(entry, records)
                added.append(entry)
                meter.end()
    return added


def _server(point: Point) -> str:
    return point.server.fingerprint


def _interleaved(points: list[Point], done: set[tuple[str, int]]) -> Iterator[tuple[Point, int]]:
    """First every point once, then every point again: what drifts over the hours meets all of them alike."""
    for repeat in range(max(point.sweep.repeats for point in points)):
        for point in points:
            if repeat < point.sweep.repeats and (point.fingerprint, repeat) not in done:
                yield point, repeat


def _on_server(
    todo: list[tuple[Point, int]],
    log: Path,
    meter: Meter,
    secrets: dict[str, str] | None,
    check: SelfCheck | None,
) -> Iterator[tuple[Entry, list[Record]]]:
    server = todo[0][0].server
    if server.target is not None:
        for point, repeat in todo:
            yield _reported(point, repeat, server.target.url, None, meter, check)
        return
    for missing in [key for key in server.env if not key.isidentifier()]:
        raise ConfigError(f"{missing!r} is no name of an environment variable.")
    left = list(todo)
    try:
        with started(server, log, secrets) as running:
            while left:
                yield _reported(*left[0], running.url, running, meter, check)
                left.pop(0)
                if not running.alive:
                    raise running.failure()
    except (EngineFailedError, ConfigError) as error:
        kind = error.kind if isinstance(error, EngineFailedError) else "installation"
        for point, repeat in left:
            verdict = failed(f"launch ({kind}): {error}")
            meter.say(f"  failed    {point.name} {point.label} #{repeat}")
            meter.say(f"            {error.what}")
            yield _entry(point, repeat, verdict, {}, started_at=time.time()), []


def _reported(
    point: Point, repeat: int, url: str, running: Started | None, meter: Meter, check: SelfCheck | None
) -> tuple[Entry, list[Record]]:
    began = time.time()
    meter.begin(f"{point.name} {point.label} #{repeat}")
    try:
        entry, records = measure(point, repeat, url, () if running is None else running.groups, check)
    except (ConfigError, ClientError, httpx.HTTPError) as error:
        dead = running is not None and not running.alive
        reason = running.failure() if running is not None and dead else error
        entry, records = _entry(point, repeat, failed(f"{reason}"), {}, started_at=began), []
    verdict, metrics = entry["verdict"], entry["metrics"]
    meter.say(f"  {verdict['status']:<8}  {_numbers(metrics)}  {point.name} {point.label} #{repeat}")
    for reason in verdict["reasons"]:
        meter.say(f"            {reason}")
    return entry, records


def _numbers(metrics: dict[str, float]) -> str:
    """Three that say most, in columns."""
    shown = []
    for name, scale, unit, width in (
        ("output_per_s", 1.0, "tokens/s", 8), ("ttft_p50", 1000.0, "ms TTFT", 7), ("tpot_p50", 1000.0, "ms TPOT", 7),
    ):  # fmt: skip
        value = f"{metrics[name] * scale:{width}.1f}" if name in metrics else f"{'-':>{width}}"
        shown.append(f"{value} {unit}")
    return " ".join(shown)


def _server_name(point: Point) -> str:
    """A server in two words."""
    server = point.server
    if server.target is not None:
        return server.target.url
    return f"{server.engine} {server.model}" + (" split" if server.parts else "")


def measure(
    point: Point, repeat: int, url: str, groups: tuple[int, ...] = (), check: SelfCheck | None = None
) -> tuple[Entry, list[Record]]:
    """One run of one point against the server at `url`: warm-up, load, accuracy; nothing is stored.

    `groups` are the server's process groups if it is ours: then its memory and this host's energy are watched.

    Raises ConfigError for a server that cannot be asked, ClientError if a client process dies.
    """
    began = time.time()
    goal = _goal(point, url)
    ratio = _words_per_token(goal) if goal.endpoint == "chat" else 1.0
    key = f"{point.fingerprint} {repeat}"
    planned = build(point.workload, point.load, key, ratio)
    closed = point.load if isinstance(point.load, Closed) else None
    _warm_up(goal, [*warmups(point.workload, point.sweep.warmup, key, ratio), *planned.warm], closed)
    before = scrape(url, goal.headers)
    with Watcher(url, goal.headers, groups) as watcher:
        driven = send(
            goal, planned.asks, places=None if closed is None else closed.conc,
            limit=None if isinstance(point.load, Closed) else point.load.max_open, processes=point.sweep.processes,
        )  # fmt: skip
    after = scrape(url, goal.headers)
    metrics = summary(driven.records, point.sweep.slo, point.server.devices, point.server.hardware.gpus > 0)
    metrics |= _served(before, after) | _energy(watcher.joules(), metrics) | _by_role(point, metrics)
    steady = window(driven.records)
    alone = None if check is None else check.of(driven.records, point.sweep.processes)
    bound = None if alone is None else alone.bound
    verdict = judge_run(point, driven, metrics, steady, planned.ideal_hit_rate, len(planned.asks), bound)
    entry = _entry(point, repeat, verdict, metrics, started_at=began)
    entry |= {
        "model": goal.model,
        "ideal_hit_rate": planned.ideal_hit_rate,
        "intervals": intervals(driven.records),
        "window": None if steady is None else vars(steady),
        "client": _client(driven, point) | ({} if alone is None else {"alone": msgspec.to_builtins(alone)}),
        "timeline": watcher.timeline(),
    }
    if repeat == 0:
        entry["evals"] = [score(spec, goal, closed.conc if closed else 8) for spec in point.evals]
    return entry, driven.records


def _goal(point: Point, url: str) -> Goal:
    target, headers = point.server.target, {}
    Address.of(url)
    variable = target.api_key_env if target is not None else None
    if variable is not None:
        if variable not in os.environ:
            raise ConfigError(f"The environment has no {variable}.", "The target's api_key_env names it.")
        headers["Authorization"] = f"Bearer {os.environ[variable]}"
    workload = point.workload
    body: dict[str, Any] = {"temperature": workload.temperature, **workload.body}
    if workload.ignore_eos:
        body["ignore_eos"] = True
    return Goal(
        url=url, model=(target and target.model) or listed(url, headers), endpoint=workload.endpoint, headers=headers,
        body=body, timeout=point.sweep.timeout_s,
        keep_text=workload.kind == "sessions" and workload.endpoint == "chat",
    )  # fmt: skip


def listed(url: str, headers: dict[str, str]) -> str:
    """The first model a server lists. Raises ConfigError if it lists none."""
    address = url.rstrip("/").removesuffix("/v1") + "/v1/models"
    try:
        listed = httpx.get(address, headers=headers, timeout=30).raise_for_status().json()
        return str(listed["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{address} lists no model.", f"{error!r}.", "Is the server up? Is the key right?") from error


def _words_per_token(goal: Goal) -> float:
    """How many of our words one prompt token is, from the server's own counts for two lengths."""
    counts = {}
    for length in (64, 192):
        driven = send(goal, [Ask(length, words(range(length)), 1)], places=1)
        record = driven.records[0]
        if record.input_tokens is None:
            raise ConfigError(
                "The server counts no prompt tokens, so no prompt length can be chosen.", record.error or ""
            )
        counts[length] = record.input_tokens
    return 128 / max(1, counts[192] - counts[64])


def _warm_up(goal: Goal, asks: Sequence[Ask], closed: Closed | None) -> None:
    if not asks:
        return
    plain = [Ask(ask.id, ask.prompt, ask.output_tokens) for ask in asks]
    broken = [r.error for r in send(goal, plain, places=closed.conc if closed else 1).records if not r.ok]
    if broken:
        raise ConfigError(f"{len(broken)} of {len(asks)} warm-up requests failed.", f"The first: {broken[0]}.")


def _served(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What the server's own counters say of the time in between: tokens it had cached, seconds requests queued."""
    found: dict[str, float] = {}
    for name, part, whole in (
        ("hit_rate", "perilune_cached_prompt_tokens_total", "perilune_prompt_tokens_total"),
        ("hit_rate", "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
        ("hit_rate", "sglang:cached_tokens_total", "sglang:prompt_tokens_total"),
        ("handed_over", HANDED_OVER, "perilune_route_requests_total"),
        ("queue", "vllm:request_queue_time_seconds_sum", "vllm:request_queue_time_seconds_count"),
    ):
        if name not in found and whole in before and (asked := after.get(whole, 0.0) - before[whole]) > 0:
            found[name] = (after.get(part, 0.0) - before.get(part, 0.0)) / asked
    return found


def _energy(joules: float | None, metrics: dict[str, float]) -> dict[str, float]:
    if joules is None or not metrics.get("output_per_s"):
        return {}
    return {"joules": joules, "joules_per_token": joules / (metrics["output_per_s"] * metrics["duration"])}


def _by_role(point: Point, metrics: dict[str, float]) -> dict[str, float]:
    """What is read per GPU that reads, and written per GPU that writes."""
    return {
        f"{name}_{role}_gpu": metrics[name] / held
        for name, role in (("input_per_s", "prefill"), ("output_per_s", "decode"))
        if name in metrics and (held := point.server.held(role))
    }


def _client(driven: Driven, point: Point) -> dict[str, Any]:
    lags = sorted(driven.lags) or [0.0]
    return {
        "lag_p99": lags[int(0.99 * (len(lags) - 1))],
        "lag_max": lags[-1],
        "cpu": driven.cpu,
        "processes": point.sweep.processes,
    }


def _entry(point: Point, repeat: int, verdict: Verdict, metrics: dict[str, float], started_at: float) -> Entry:
    server = point.server
    return {
        "fingerprint": point.fingerprint,
        "asked": point.asked_fingerprint,
        "sweep": point.name,
        "names": dict(point.names),
        "labels": dict(point.sweep.labels),
        "repeat": repeat,
        "verdict": builtins(verdict),
        "metrics": metrics,
        "server": without_secrets(server.identity),
        "rules": [{"when": fired.when, "why": fired.why} for fired in server.fired],
        "gpus": server.gpus,
        "workload": point.workload.model_dump(mode="json", exclude_defaults=True),
        "load": point.load.model_dump(mode="json"),
        "slo": point.sweep.slo.model_dump(exclude_none=True),
        "evals": [],
        "started": started_at,
        "seconds": time.time() - started_at,
        "bench": {"version": __version__, "python": platform.python_version(), "host": platform.platform()},
    }


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that servers end with us."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
