"""What an engine says of itself at /pd/status: the part of docs/pd.md's form that routing and the page read."""

from __future__ import annotations

import msgspec


class Slots(msgspec.Struct):
    total: int = 0
    free: int = 0


class Pages(msgspec.Struct):
    total: int = 0
    free: int = 0
    tokens: int = 64


class Queue(msgspec.Struct):
    running: int = 0
    waiting: int = 0
    uncached_tokens: int = 0
    receiving: int = 0
    lending: int = 0


class Cost(msgspec.Struct):
    token_bytes: int = 0
    state_bytes: int = 0


class Rates(msgspec.Struct):
    prefill_tokens_per_second: float = 0.0
    link_bytes_per_second: float = 0.0


class Prefix(msgspec.Struct):
    tokens: int
    digest: str


class Status(msgspec.Struct):
    """Fields that are missing have not been told; fields beyond these are not read."""

    engine: str = ""
    incarnation: str = ""
    role: str = "both"
    accepting: bool = True
    model_digest: str = ""
    key: str = ""
    slots: Slots = msgspec.field(default_factory=Slots)
    pages: Pages = msgspec.field(default_factory=Pages)
    queue: Queue = msgspec.field(default_factory=Queue)
    cost: Cost = msgspec.field(default_factory=Cost)
    rates: Rates = msgspec.field(default_factory=Rates)
    prefixes: list[Prefix] = msgspec.field(default_factory=list)
    totals: dict[str, float] = msgspec.field(default_factory=dict)


def read_status(body: bytes) -> Status | None:
    """None for what is no such form: an engine that answers anything else is a plain one."""
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        return None
