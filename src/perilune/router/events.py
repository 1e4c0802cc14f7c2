"""Passing server-sent events on: whole ones only, byte for byte, so that an error can follow at any time."""

from __future__ import annotations

import json
import re

from perilune.http.errors import ErrorBody, ErrorDetail
from perilune.http.sse import data_event, named_event

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LAST = re.compile(rb"^data: ?\[DONE\]|^event: ?response\.(?:completed|incomplete|failed)|^event: ?error", re.MULTILINE)
_ERROR = re.compile(rb"^data: ?(\{.*)$", re.MULTILINE)

_ERRORS = (b'{"error"', b'{"object":"error"', b'{"object": "error"', b'{"type":"error"', b'{"type": "error"')


class Events:
    """Cuts a stream behind blank lines. `ended` is how it said itself that it is over: "ok", "error", or not yet.

    `latest` is the latest part with a usage in it.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.ended = ""
        self.latest = b""

    def feed(self, data: bytes) -> bytes:
        """The whole events that `data` completes, as they came."""
        self._rest += data
        end = max((found.end() for found in _END.finditer(self._rest)), default=0)
        whole, self._rest = self._rest[:end], self._rest[end:]
        if whole:
            if error_in(whole) is not None:
                self.ended = "error"
            elif not self.ended and _LAST.search(whole) is not None:
                self.ended = "ok"
            if b'"prompt_tokens"' in whole or b'"input_tokens"' in whole:
                self.latest = whole
        return whole


def error_in(events: bytes) -> ErrorDetail | None:
    """The error an engine sent as an event after status 200, if one is among `events`."""
    if b'"error"' not in events:
        return None
    for found in _ERROR.finditer(events):
        if not found.group(1).startswith(_ERRORS):
            continue
        try:
            said = json.loads(found.group(1))
        except ValueError:
            continue
        inner = said.get("error") if isinstance(said.get("error"), dict) else said
        return ErrorDetail(
            message=str(inner.get("message", "")), type=str(inner.get("type", "")), code=str(inner.get("code", ""))
        )
    return None


def error_event(path: str, detail: ErrorDetail) -> bytes:
    """The last event of a broken stream, in the form of the endpoint's own errors."""
    if path == "/v1/responses":
        fields = {"type": "error", "code": detail.code, "message": detail.message, "param": None}
        return named_event("error", json.dumps(fields))
    return data_event(ErrorBody(error=detail))


def prompt_tokens(said: bytes) -> int | None:
    """The prompt's length by an answer's usage, whole or in its last event."""
    found = re.findall(rb'"(?:prompt|input)_tokens": ?(\d{1,12})', said)
    return int(found[-1]) if found else None
