"""Server-sent events of chat and completion streams, from bytes as they come, cut anywhere, to what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec


class BadStreamError(Exception):
    """The stream is not what it should be: no JSON, or an error the server sent in the middle."""


class Delta(msgspec.Struct, frozen=True):
    """What one event adds. A role alone, an empty delta or a usage chunk has no text and is no token."""

    answer: str = ""
    reasoning: str = ""
    calls: bool = False
    finish: str | None = None
    usage: dict[str, Any] | None = None
    done: bool = False

    @property
    def tokens(self) -> bool:
        """Whether the model said anything in it."""
        return bool(self.answer or self.reasoning or self.calls)


class EventParser:
    """Feed bytes, get deltas. Splits on LF, CRLF or CR, joins `data:` lines, decodes only whole events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Delta]:
        """The deltas that `data` completes. Raises BadStreamError."""
        self._rest += data
        while True:
            ends = [i for i in (self._rest.find(b"\n"), self._rest.find(b"\r")) if i >= 0]
            if not ends:
                return
            end = min(ends)
            if self._rest[end : end + 1] == b"\r" and end + 1 == len(self._rest):
                return  # an LF may follow
            step = 2 if self._rest[end : end + 2] == b"\r\n" else 1
            line, self._rest = self._rest[:end], self._rest[end + step :]
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield self._event()

    def _event(self) -> Delta:
        text = b"\n".join(self._data)
        self._data.clear()
        if text.strip() == b"[DONE]":
            return Delta(done=True)
        try:
            event = _read(text)
        except ValueError as error:
            raise BadStreamError(f"an event is no JSON: {text[:80]!r}") from error
        if not isinstance(event, dict):
            raise BadStreamError(f"an event is no object: {text[:80]!r}")
        if event.get("error") is not None:
            error_ = event["error"]
            raise BadStreamError(str(error_.get("message", error_)) if isinstance(error_, dict) else str(error_))
        return meaning(event)


def meaning(event: dict[str, Any]) -> Delta:
    """The first choice of a chunk, or of a whole answer: chat's delta or message, completion's text."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    said = choice.get("delta") or choice.get("message") or {}
    usage = event.get("usage")
    return Delta(
        answer=_text(said.get("content")) or _text(choice.get("text")),
        # vLLM and SGLang say reasoning_content or reasoning, by version.
        reasoning=_text(said.get("reasoning_content")) or _text(said.get("reasoning")),
        calls=bool(said.get("tool_calls")),
        finish=choice.get("finish_reason"),
        usage=usage if isinstance(usage, dict) else None,
    )


def _read(text: bytes) -> Any:
    """Fast where it is JSON; some servers write NaN where a log probability is none. Raises ValueError."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
