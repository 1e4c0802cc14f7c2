"""Typed errors. Each one says what went wrong, why, and which setting changes it.

Never: a bare `assert` or a bare `ValueError` at a boundary a user can reach.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeriluneError(Exception):
    """Base of every error a user can see.

    `what` is one sentence about the failure; `why` the reason; `fix` the setting or step that helps;
    `param` the name of the offending request field, if there is one.
    """

    http_status = 500
    code = "internal_error"

    def __init__(self, what: str, why: str = "", fix: str = "", *, param: str | None = None) -> None:
        self.what, self.why, self.fix, self.param = what, why, fix, param
        super().__init__(" ".join(part for part in (what, why, fix) if part))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.why, self.fix, self.param))


def _rebuild(kind: type[PeriluneError], what: str, why: str, fix: str, param: str | None) -> PeriluneError:
    return kind(what, why, fix, param=param)


class ConfigError(PeriluneError):
    """A setting, flag or configuration file is wrong."""

    http_status = 400
    code = "invalid_config"


class ModelNotFoundError(PeriluneError):
    """The path or hub id names no model that can be read."""

    http_status = 404
    code = "model_not_found"


class CheckpointError(PeriluneError):
    """A checkpoint's files are broken, incomplete or do not match its config."""

    code = "invalid_checkpoint"


class UnsupportedError(PeriluneError):
    """The request is well formed, but this build cannot do it."""

    http_status = 400
    code = "unsupported"


class RequestError(PeriluneError):
    """A request is invalid: an unknown field, a value out of range, a bad schema."""

    http_status = 400
    code = "invalid_request"


class ContextLengthError(RequestError):
    """Prompt and answer do not fit the context or the cache."""

    code = "context_length_exceeded"


class OverloadedError(PeriluneError):
    """The queue is full; the same request may succeed later."""

    http_status = 503
    code = "overloaded"


class EngineDeadError(PeriluneError):
    """The engine process ended while requests were open."""

    http_status = 503
    code = "engine_dead"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint naming the valid key closest to `name`, or the list of valid keys."""
    keys = sorted(valid)
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Valid: {', '.join(keys)}."
