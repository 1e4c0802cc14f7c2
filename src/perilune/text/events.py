"""What a model's answer is made of, piece by piece, and the list that collects the pieces."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True)
class ContentDelta:
    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """`index` counts the calls of this answer from 0; `id` is the model's own where its format has one."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next piece of a call's arguments, which together are the text of a JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallEnd:
    index: int


Event = ReasoningDelta | ContentDelta | ToolCallStart | ToolCallArguments | ToolCallEnd


def random_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class Text:
    """One channel of text without the blank space around markers.

    Trailing space waits for what follows it: more text lets it out, a marker (`cut`) drops it. After a marker,
    leading newlines go too.
    """

    def __init__(self) -> None:
        self._space, self._after_marker, self.wrote = "", False, False

    def push(self, text: str) -> str:
        """The part of all text so far that can go out now. `wrote` tells whether any has since the last marker."""
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if not body:
            return ""
        self.wrote, strip = True, self._after_marker
        self._after_marker = False
        return body.lstrip("\n") if strip else body

    def cut(self) -> None:
        self._space, self._after_marker, self.wrote = "", True, False

    def finish(self) -> str:
        space, self._space = self._space, ""
        return "" if self._after_marker else space


class Events:
    """Collects events; neighbouring pieces of the same kind become one."""

    def __init__(self, new_id: Callable[[], str] = random_id) -> None:
        self.content = Text()
        self._new_id = new_id
        self._index = -1
        self._list: list[Event] = []

    def add_reasoning(self, text: str) -> None:
        self._add(ReasoningDelta(text))

    def add_content(self, text: str) -> None:
        self._add(ContentDelta(self.content.push(text)))

    def start_call(self, name: str, call_id: str = "") -> None:
        self.content.cut()
        self._index += 1
        self._list.append(ToolCallStart(self._index, call_id or self._new_id(), name))

    def add_arguments(self, text: str) -> None:
        self._add(ToolCallArguments(self._index, text))

    def end_call(self) -> None:
        self._list.append(ToolCallEnd(self._index))

    def finish_content(self) -> None:
        self._add(ContentDelta(self.content.finish()))

    def take(self) -> list[Event]:
        taken, self._list = self._list, []
        return taken

    def _add(self, event: ReasoningDelta | ContentDelta | ToolCallArguments) -> None:
        last = self._list[-1] if self._list else None
        if not event.text:
            return
        if type(last) is type(event) and isinstance(last, ReasoningDelta | ContentDelta | ToolCallArguments):
            self._list[-1] = dataclasses.replace(last, text=last.text + event.text)
        else:
            self._list.append(event)
