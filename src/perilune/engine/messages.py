"""What crosses between the HTTP process and the engine process: msgspec structs in msgpack, never pickle."""

from __future__ import annotations

from typing import Any

import msgspec

from perilune import errors
from perilune.engine.request import FinishReason, Handover, Lent, PromptLogprobs, SamplingParams, TokenLogprobs
from perilune.engine.view import View
from perilune.pd import errors as pd_errors


class WireError(msgspec.Struct, frozen=True):
    """A PeriluneError in transit; unknown kinds come back as the base class."""

    kind: str
    what: str
    why: str = ""
    fix: str = ""
    param: str | None = None

    @staticmethod
    def of(error: Exception) -> WireError:
        if isinstance(error, errors.PeriluneError):
            return WireError(type(error).__name__, error.what, error.why, error.fix, error.param)
        text = f"{type(error).__name__}: {error}"
        return WireError(
            "PeriluneError", "The engine failed on this request.", text, "Please report it with the server's log."
        )

    def error(self) -> errors.PeriluneError:
        kind = getattr(errors, self.kind, None) or getattr(pd_errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, errors.PeriluneError)):
            kind = errors.PeriluneError
        return kind(self.what, self.why, self.fix, param=self.param)


class Submit(msgspec.Struct, tag=True, frozen=True):
    """One sequence. `stream` tells the n sequences of a request apart under one seed.

    Prefixes are shared with requests of the same `salt` only. `marks`: after how many prompt tokens to keep a state.
    `handover`: the prompt is read here for another engine, or was read by one.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    stream: int = 0
    salt: bytes = b""
    marks: tuple[int, ...] = ()
    handover: Handover | None = None


class Abort(msgspec.Struct, tag=True, frozen=True):
    id: str


class AskStats(msgspec.Struct, tag=True, frozen=True):
    pass


class AskView(msgspec.Struct, tag=True, frozen=True):
    """What a page shows; answered by View."""


class AskStatus(msgspec.Struct, tag=True, frozen=True):
    """What a router wants to know; answered by Status."""


class Withdraw(msgspec.Struct, tag=True, frozen=True):
    """Nobody will use `ticket`, whoever gave it: this engine, or another that shall know at once."""

    ticket: str
    reason: str


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    pass


class TokenEvent(msgspec.Struct, frozen=True):
    """One new token of sequence `id`, or its end without one. `ends_turn`: the token is a stop token, not text.

    The first event of a sequence has the `prompt_logprobs` that were asked for. `lent` answers Lend; `remote` says of a
    Borrow whether its cache has arrived, or was computed here after all.
    """

    id: str
    token: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    ends_turn: bool = False
    cached_tokens: int = 0
    error: WireError | None = None
    prompt_logprobs: tuple[PromptLogprobs | None, ...] | None = None
    lent: Lent | None = None
    remote: bool | None = None


class Ready(msgspec.Struct, tag=True, frozen=True):
    because: tuple[str, ...]


class Tokens(msgspec.Struct, tag=True, frozen=True):
    events: tuple[TokenEvent, ...]


class Stats(msgspec.Struct, tag=True, frozen=True):
    values: dict[str, int | float | str]


class Status(msgspec.Struct, tag=True, frozen=True):
    """`EngineCore.status`; None if the engine hands nothing over."""

    values: dict[str, Any] | None


class Fatal(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot start or go on; the process exits after this."""

    error: WireError


ToEngine = Submit | Abort | AskStats | AskView | AskStatus | Withdraw | Shutdown
FromEngine = Ready | Tokens | Stats | View | Status | Fatal
