"""Prometheus metrics of one app, in its own registry.

Counters and histograms are counted here, where answers leave; the gauges are the engine's own numbers, copied
whenever somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_BETWEEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """Everything `/metrics` shows. One per app; never global, so that two apps in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("perilune_requests", "Requests by how they ended.", ["outcome"], registry=registry)
        self.prompt_tokens = Counter("perilune_prompt_tokens", "Prompt tokens of answered requests.", registry=registry)
        self.cached_tokens = Counter(
            "perilune_cached_prompt_tokens", "Prompt tokens found in the cache.", registry=registry
        )
        self.marks = Counter(
            "perilune_cache_marks", "cache_control marks, by whether they have a place in the prompt.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.generation_tokens = Counter("perilune_generation_tokens", "Tokens generated.", registry=registry)
        self.first_token = Histogram(
            "perilune_time_to_first_token_seconds",
            "From request to first token.",
            buckets=_FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "perilune_inter_token_seconds",
            "Between two tokens of one sequence.",
            buckets=_BETWEEN_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "perilune_request_seconds", "From request to last token.", buckets=_WHOLE_SECONDS, registry=registry
        )
        self.open = Gauge(
            "perilune_open_sequences", "Sequences the server has open, running and waiting.", registry=registry
        )
        self._engine: dict[str, Gauge] = {}
        self._up = Gauge("perilune_engine_up", "1 while the engine process answers.", registry=registry)

    def count_marks(self, places: Sequence[int | None]) -> None:
        """`places`: where each mark of one request lies in its prompt; None for one without a place."""
        for place in places:
            self.marks.labels("unplaced" if place is None else "placed").inc()

    def show(self, stats: Mapping[str, Any] | None) -> bytes:
        """The exposition text. `stats` is AsyncEngine.stats(), None if the engine did not answer."""
        self._up.set(stats is not None)
        for key, value in (stats or {}).items():
            if isinstance(value, int | float):
                self._gauge(key).set(value)
        return generate_latest(self.registry)

    def _gauge(self, key: str) -> Gauge:
        if key not in self._engine:
            self._engine[key] = Gauge(f"perilune_engine_{key}", f"The engine's {key}.", registry=self.registry)
        return self._engine[key]
