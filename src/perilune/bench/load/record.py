"""One request before and after: what was planned, and every time that was observed."""

from __future__ import annotations

import json
from typing import Any

import msgspec


class Ask(msgspec.Struct, frozen=True):
    """A request to send.

    `at` is when, in seconds from the start of the run; None in a closed loop: when one of its places is free.
    `prompt` is token ids or text. `session` requests run in order, each `pause` seconds after the last; a turn of a
    session carries only what it adds, since what came before holds answers.
    """

    id: int
    prompt: list[int] | str
    output_tokens: int
    at: float | None = None
    session: int | None = None
    pause: float = 0.0
    prefix_tokens: int = 0


class Record(msgspec.Struct, kw_only=True):
    """What became of it. Times are seconds from the start of the run; None is what never happened.

    `intended` is when it should have been sent, `sent` when its first byte was; `first_byte` the first byte of the
    answer's body. `first_token` is the first token of any kind, reasoning included; `first_reasoning` and
    `first_answer` the first of each. `arrivals` are the times of chunks with text. `input_tokens`, `output_tokens`,
    `cached_tokens` and `reasoning_tokens` are the server's counts.
    """

    id: int
    session: int | None = None
    worker: int = 0
    intended: float
    sent: float | None = None
    connected: float | None = None
    first_byte: float | None = None
    first_token: float | None = None
    first_reasoning: float | None = None
    first_answer: float | None = None
    end: float | None = None
    arrivals: list[float] = msgspec.field(default_factory=list)
    planned_input: int | None = None
    planned_output: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    status: int | None = None
    finish: str | None = None
    error: str | None = None
    text: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


def to_line(record: Record) -> bytes:
    """One line of JSON; None is left out."""
    return msgspec.json.encode({k: v for k, v in msgspec.to_builtins(record).items() if v is not None}) + b"\n"


def from_line(line: bytes) -> Record:
    return msgspec.json.decode(line, type=Record)


def compact(value: Any) -> bytes:
    """JSON without spaces, as sent."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
