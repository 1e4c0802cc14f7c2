"""How models write tool calls. A format opens at a marker; its region then reads until the calls are over.

A region never fails: what makes no sense comes out as content, or as arguments closed as well as possible.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from perilune.text.events import Events
from perilune.text.toolvalues import JsonObject

Schemas = Mapping[str, Mapping[str, Any]]
"""Tool name to the JSON schema of its parameters."""


class Region(ABC):
    """A stretch of tool calls. `markers` are what it looks for now; `done` sends the parser back to content."""

    def __init__(self, events: Events, schemas: Schemas) -> None:
        self._events, self._schemas = events, schemas
        self.markers: tuple[str, ...] = ()
        self.done = False

    @abstractmethod
    def marker(self, marker: str) -> None: ...

    @abstractmethod
    def text(self, text: str) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """The answer ends here."""


class ToolFormat(ABC):
    """`opens` start a region, `strays` mean nothing outside one, `ends_reasoning`: a call may start inside it."""

    opens: tuple[str, ...]
    strays: tuple[str, ...] = ()
    ends_reasoning = False

    @abstractmethod
    def region(self, events: Events, schemas: Schemas) -> Region: ...


SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENT, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


class KimiFormat(ToolFormat):
    """A section of `functions.NAME:IDX` and JSON text. The section's markers may be missing; ids pass unchanged."""

    opens = (SECTION, CALL)
    strays = (SECTION_END, CALL_END)
    ends_reasoning = True

    def region(self, events: Events, schemas: Schemas) -> Region:
        return _KimiRegion(events, schemas)


class _KimiRegion(Region):
    """Arguments are passed on as they come: they are JSON text already."""

    _where: str
    _ID = re.compile(r"(?:functions\.)?([^\s{}\"<>]+?)(?::\d+)?")

    def __init__(self, events: Events, schemas: Schemas) -> None:
        super().__init__(events, schemas)
        self._in_section = False
        self._id, self._space, self._wrote = "", "", False
        self._between()

    def marker(self, marker: str) -> None:
        if self._where == "id":
            self._head_ends(marker)
        elif self._where == "arguments":
            self._call_ends()
        if marker == SECTION:
            self._in_section = True
        elif marker == CALL:
            self._where, self._id, self.markers = "id", "", (CALL, ARGUMENT, CALL_END, SECTION_END)
        elif self._where == "between":
            self.done = marker == SECTION_END or not self._in_section

    def text(self, text: str) -> None:
        if self._where == "id":
            self._id += text
        elif self._where == "arguments":
            text = self._space + text
            body = text.rstrip()
            self._space = text[len(body) :]
            self._events.add_arguments(body if self._wrote else body.lstrip())
            self._wrote = self._wrote or bool(body)
        else:
            self._events.add_content(text)

    def finish(self) -> None:
        if self._where == "id":
            self._events.add_content(CALL + self._id)
        elif self._where == "arguments":
            self._call_ends()

    def _between(self) -> None:
        self._where, self.markers = "between", (SECTION, CALL, CALL_END, SECTION_END)

    def _head_ends(self, marker: str) -> None:
        call_id = self._id.strip()
        name = self._ID.fullmatch(call_id)
        self._between()
        if name is None:
            self._events.add_content(CALL + self._id + (ARGUMENT if marker == ARGUMENT else ""))
            return
        self._events.start_call(name.group(1), call_id)
        self._where, self._space, self._wrote = "arguments", "", False
        self.markers = (CALL, CALL_END, SECTION_END)
        if marker != ARGUMENT:
            self._call_ends()

    def _call_ends(self) -> None:
        if not self._wrote:
            self._events.add_arguments("{}")
        self._events.end_call()
        self._between()


OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class GlmFormat(ToolFormat):
    """`<tool_call>NAME`, then keys and values between tags. String values are raw, so the schema tells the types."""

    opens = (OPEN,)

    def region(self, events: Events, schemas: Schemas) -> Region:
        return _GlmRegion(events, schemas)


class _GlmRegion(Region):
    """One call. Argument text goes out as the values come in, string by string."""

    _NAME = re.compile(r"[^\s{}\"<>]+")
    _MARKERS: Mapping[str, tuple[str, ...]] = {
        "idle": (),
        "name": (OPEN, KEY, CLOSE),
        "body": (OPEN, KEY, CLOSE),
        "key": (OPEN, KEY_END, VALUE, CLOSE),
        "after key": (OPEN, KEY, VALUE, CLOSE),
        "value": (VALUE_END, CLOSE),
    }

    def __init__(self, events: Events, schemas: Schemas) -> None:
        super().__init__(events, schemas)
        self._go("idle")

    def marker(self, marker: str) -> None:
        if marker == OPEN:
            self._leave()
            self._go("name")
        elif self._where == "name":
            self._name_ends(marker)
        elif marker == CLOSE:
            self._leave()
        elif marker == KEY:
            self._go("key")
        elif marker == KEY_END:
            self._key_ends()
            self._go("after key")
        elif marker == VALUE:
            if self._where == "key":
                self._key_ends()
            self._go("value")
        else:
            self._events.add_arguments(self._object.end_value())
            self._go("body")

    def text(self, text: str) -> None:
        if self._where in ("name", "key"):
            self._word += text
        elif self._where == "value":
            self._events.add_arguments(self._object.value(text))
        else:
            self._events.add_content(text)

    def finish(self) -> None:
        self._leave()

    def _go(self, where: str) -> None:
        self._where, self._word, self.markers = where, "", self._MARKERS[where]
        self.done = where == "idle"

    def _name_ends(self, marker: str) -> None:
        name = self._word.strip()
        if not self._NAME.fullmatch(name):
            self._events.add_content(OPEN + self._word + marker)
            self._go("idle")
            return
        self._events.start_call(name)
        self._object = JsonObject(self._schemas.get(name, {}))
        self._go("key" if marker == KEY else "body")
        if marker == CLOSE:
            self._leave()

    def _key_ends(self) -> None:
        self._events.add_arguments(self._object.key(self._word.strip()))

    def _leave(self) -> None:
        """Ends the call wherever it stands."""
        if self._where == "name":
            self._events.add_content(OPEN + self._word)
        elif self._where != "idle":
            if self._where == "key":
                self._key_ends()
            self._events.add_arguments(self._object.close())
            self._events.end_call()
        self._go("idle")


TOOL_PARSERS: Mapping[str, ToolFormat] = {"kimi_k2": KimiFormat(), "glm45": GlmFormat(), "glm47": GlmFormat()}
"""By the names vLLM uses."""
