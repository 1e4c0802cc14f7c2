"""How routing fails: towards clients, and between the router and one engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from perilune.errors import OverloadedError, PeriluneError

Leg = Literal["prefill", "decode"]


class RouterFullError(OverloadedError):
    """As many requests are open as the router holds."""

    http_status = 429
    code = "router_full"


class NoWorkerError(OverloadedError):
    """No engine that could answer is there."""

    code = "no_worker"


class WorkerFailedError(PeriluneError):
    """Every engine that was tried failed before the first token."""

    http_status = 502
    code = "worker_failed"


class StreamBrokenError(PeriluneError):
    """An engine was lost after it had begun to answer. What came before stands; nothing is tried again."""

    http_status = 502
    code = "worker_lost"


@dataclass(frozen=True)
class Answer:
    """What an engine answered, whole: kept so that the client can get the engine's own words."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class LegError(Exception):
    """One leg failed before the first token. `reason` is a word for metrics; `answer` the engine's, if it gave one."""

    def __init__(self, leg: Leg, worker: str, reason: str, answer: Answer | None = None) -> None:
        super().__init__(f"{leg} on {worker}: {reason}")
        self.leg, self.worker, self.reason, self.answer = leg, worker, reason, answer


class RefusedError(Exception):
    """An engine says the request itself is wrong. Its answer is the client's; no other engine is asked."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"status {answer.status}")
        self.answer = answer
