"""Looks at a server while it is under load: its own gauges, its memory, its power, once a second, as a timeline.

Only bytes are collected during the load; they are understood afterwards, so that the client is not disturbed.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from perilune.bench.scrape import parse
from perilune.host.energy import Power, read_power, spent

EVERY = 1.0
MOST = 200
"""Rows of a timeline; a longer run keeps every second, fourth, … of them."""

_SHARES: tuple[tuple[str, str, str | None], ...] = (
    ("cache_used", "perilune_engine_cache_bytes_used", "perilune_engine_cache_bytes_planned"),
    ("cache_kept", "perilune_engine_cache_bytes_cached", "perilune_engine_cache_bytes_planned"),
    ("cache_used", "vllm:kv_cache_usage_perc", None),
    ("cache_used", "vllm:gpu_cache_usage_perc", None),
    ("cache_used", "sglang:token_usage", None),
    ("running", "perilune_engine_running", None),
    ("running", "vllm:num_requests_running", None),
    ("running", "sglang:num_running_reqs", None),
    ("waiting", "perilune_engine_waiting", None),
    ("waiting", "vllm:num_requests_waiting", None),
    ("waiting", "sglang:num_queue_reqs", None),
)
"""What a row has: name, the server's gauge, and what it is a share of."""


@dataclass(frozen=True)
class Look:
    """`at` in seconds of the load; `metrics` as served; `memory` in bytes of the server's processes."""

    at: float
    metrics: bytes
    memory: int | None
    power: Power


@dataclass
class Watcher:
    """`with Watcher(url) as watcher:` around a load. `groups` are those of a server of ours."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[int] = ()
    every: float = EVERY
    looks: list[Look] = field(default_factory=list)

    def __enter__(self) -> Watcher:
        self._stop, self._began = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)

    def timeline(self) -> list[dict[str, float]]:
        """One row per look: `at`, and what of `cache_used`, `cache_kept` (shares), `running`, `waiting`, `memory`
        (bytes) and `watts` could be read."""
        step = 1
        while len(self.looks) // step > MOST:
            step *= 2
        return [_row(look) for look in self.looks[::step]]

    def joules(self) -> float | None:
        """Energy from the first look to the last: counters of the processors, and the GPUs' draw over time."""
        if not self.groups or len(self.looks) < 2:
            return None
        counted = spent(self.looks[0].power, self.looks[-1].power)
        drawn = _integrated([(look.at, sum(look.power.watts.values())) for look in self.looks if look.power.watts])
        return None if counted is None and drawn is None else (counted or 0.0) + (drawn or 0.0)

    def _watch(self) -> None:
        self._look()
        while not self._stop.wait(self.every):
            self._look()
        self._look()

    def _look(self) -> None:
        at = time.monotonic() - self._began
        power = read_power() if self.groups else Power({}, {})
        self.looks.append(Look(at, fetch(self.url, self.headers), resident(self.groups), power))


def fetch(url: str, headers: Mapping[str, str]) -> bytes:
    """/metrics as served; empty where there are none."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path.rstrip("/").removesuffix("/v1") + "/metrics", headers=dict(headers))
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else b""
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def resident(groups: Sequence[int], proc: Path = Path("/proc")) -> int | None:
    """Bytes in memory of all processes of these groups; what they share is counted in each. None without any."""
    if not groups:
        return None
    found = 0
    for entry in proc.glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended in between
        if int(fields[2]) in groups:
            found += int(fields[21]) * 4096
    return found or None


def _row(look: Look) -> dict[str, float]:
    served, row = parse(look.metrics.decode(errors="replace")), {"at": round(look.at, 3)}
    for name, gauge, whole in _SHARES:
        if gauge in served and name not in row and (whole is None or served.get(whole)):
            row[name] = served[gauge] / (1.0 if whole is None else served[whole])
    if look.memory is not None:
        row["memory"] = look.memory
    if look.power.watts:
        row["watts"] = sum(look.power.watts.values())
    return row


def _integrated(samples: Sequence[tuple[float, float]]) -> float | None:
    """Joules under samples of (seconds, watts), by the trapezoidal rule."""
    if len(samples) < 2:
        return None
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in itertools.pairwise(samples))
