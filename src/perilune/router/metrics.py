"""Prometheus metrics of one router, in its own registry."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from perilune.router.worker import Worker

_FIRST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class RouterMetrics:
    """Everything the router's `/metrics` shows. Never global, so that two routers in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"perilune_route_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "Requests by engines and end.", "path", "decode", "prefill", "outcome")
        self.choices = counter("choices", "Why a prompt was read where it was.", "why")
        self.retries = counter("retries", "Attempts that failed before the first token.", "leg", "reason")
        self.cancels = counter("cancels", "Requests whose client left before the answer was whole.")
        self.stripped = counter("stripped_fields", "Fields taken out of clients' requests.")
        self.fallbacks = counter("local_fallbacks", "Handed-over prompts that the decode engine had to read itself.")
        self.first = Histogram(
            "perilune_route_first_token_seconds", "From request to first event, by way.", ["way"],
            buckets=_FIRST_SECONDS, registry=registry,
        )  # fmt: skip
        self.open = Gauge("perilune_route_open", "Requests the router has open.", registry=registry)
        self._workers = [
            (Gauge(f"perilune_route_worker_{name}", text, ["worker", "role"], registry=registry), name)
            for name, text in (
                ("up", "1 while the engine answers."),
                ("open", "The router's requests there."),
                ("pending_tokens", "Prompt tokens of these that have not been read yet, estimated."),
            )
        ]

    def ways(self) -> dict[tuple[str, str], int]:
        """Requests so far by (prefill engine, decode engine); one of them is empty where there was none."""
        found: dict[tuple[str, str], int] = {}
        for metric in self.requests.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    way = (sample.labels["prefill"], sample.labels["decode"])
                    found[way] = found.get(way, 0) + int(sample.value)
        return found

    def show(self, workers: Iterable[Worker]) -> bytes:
        """The exposition text."""
        for gauge, _ in self._workers:
            gauge.clear()
        for worker in workers:
            values = {"up": worker.up, "open": worker.open, "pending_tokens": worker.pending}
            for gauge, name in self._workers:
                gauge.labels(worker.name, worker.place.role).set(values[name])
        return generate_latest(self.registry)
