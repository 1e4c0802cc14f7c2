"""`tool_choice` that forces a call: a grammar for the answer, and the reader that turns it back into a call.

One possible tool: the answer is its arguments. Several: {"name": ..., "arguments": ...}, the name chosen by the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from perilune.engine.request import Grammar
from perilune.text.events import Event, ToolCallArguments, ToolCallEnd, ToolCallStart

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


def forced_grammar(functions: Sequence[dict[str, Any]]) -> Grammar:
    """The grammar for exactly one call of one of `functions`, each {"name", "parameters"} as in a request."""
    if len(functions) == 1:
        return Grammar("json_schema", json.dumps(_parameters(functions[0])), compact=True)
    definitions = {f"call_{i}": _moved(_parameters(f), f"#/$defs/call_{i}") for i, f in enumerate(functions)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/call_{i}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, function in enumerate(functions)
    ]
    return Grammar("json_schema", json.dumps({"anyOf": calls, "$defs": definitions}), compact=True)


class ArgumentsReader:
    """The whole text is the arguments of the tool `name`."""

    def __init__(self, name: str, number: int = 0) -> None:
        self._name, self._id = name, call_id(name, number)
        self._started = False

    def push(self, text: str) -> list[Event]:
        if not text:
            return []
        start: list[Event] = [] if self._started else [ToolCallStart(0, self._id, self._name)]
        self._started = True
        return [*start, ToolCallArguments(0, text)]

    def finish(self) -> list[Event]:
        return [ToolCallEnd(0)] if self._started else []


class NamedCallReader:
    """The text is {"name": ..., "arguments": ...}: held until the name is known, then cut where the value ends."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._held = ""
        self._started = self._ended = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, text: str) -> list[Event]:
        if self._ended:
            return []
        events: list[Event] = []
        if not self._started:
            self._held += text
            head = _HEAD.match(self._held)
            if not head:
                return []
            name = json.loads(head.group(1))
            events.append(ToolCallStart(0, call_id(name, self._number), name))
            self._started = True
            text = self._held[head.end() :]
        value = text[: self._value_end(text)]
        return [*events, ToolCallArguments(0, value)] if value else events

    def finish(self) -> list[Event]:
        return [ToolCallEnd(0)] if self._started else []

    def _value_end(self, text: str) -> int:
        """Length of the part of `text` inside the arguments object."""
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._ended = True
                    return at + 1
        return len(text)


def call_id(name: str, number: int) -> str:
    """Kimi's own form, in which `number` counts the conversation's calls; every other family takes any id."""
    return f"functions.{name}:{number}"


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    """Arguments are an object, whatever the schema forgot to say."""
    return {"type": "object", **(function.get("parameters") or {})}


def _moved(schema: Any, root: str) -> Any:
    """`schema` with its references to its own root pointing to `root`."""
    if isinstance(schema, dict):
        return {
            key: root + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, root)
            for key, value in schema.items()
        }
    return [_moved(item, root) for item in schema] if isinstance(schema, list) else schema
