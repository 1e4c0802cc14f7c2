"""`cache_control`: where a client says that others will go on from, and after how many tokens of the prompt that is.

A mark sits on a message, on a part of its content or on a tool. Its place is found by rendering the conversation once
more with something else after the marked text: up to there the two prompts have the same tokens. So the place is one
that every continuation shares, whatever the template does around it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perilune.errors import RequestError
from perilune.text.chat import Prompt

log = logging.getLogger(__name__)

FIELD = "cache_control"
MOST_MARKS = 4
MARK_SCHEMA = {
    "type": ["object", "null"],
    "properties": {"type": {"const": "ephemeral"}, "ttl": {"enum": ["5m", "1h"]}},
    "required": ["type"],
    "additionalProperties": False,
}
_LIFETIMES = (None, "5m", "1h")
"""Accepted, since clients send them; nothing here is kept or dropped by the clock."""

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], Sequence[Message]], Prompt]


@dataclass(frozen=True)
class Mark:
    """At the end of tool `tool`; or of message `message`, or of part `part` of its content."""

    tool: int | None = None
    message: int | None = None
    part: int | None = None


@dataclass(frozen=True)
class Unmarked:
    """A conversation without its marks, which no template may see, and the marks."""

    messages: list[Message]
    tools: list[Message]
    marks: tuple[Mark, ...]


def take_marks(messages: Sequence[Message], tools: Sequence[Message]) -> Unmarked:
    """Raises RequestError, naming the field, for a mark of another form or more than `MOST_MARKS`."""
    marks: list[Mark] = []
    plain_tools = [_plain_tool(tool, Mark(tool=i), f"tools[{i}]", marks) for i, tool in enumerate(tools)]
    plain_messages = [_plain_message(message, i, marks) for i, message in enumerate(messages)]
    if len(marks) > MOST_MARKS:
        raise RequestError(
            f"The request has {len(marks)} {FIELD} marks.", f"At most {MOST_MARKS} are kept.", "Mark less.", param=FIELD
        )
    return Unmarked(plain_messages, plain_tools, tuple(marks))


def _plain_tool(tool: Any, mark: Mark, where: str, marks: list[Mark]) -> Any:
    plain = _without(tool, mark, where, marks)
    if isinstance(plain, Mapping) and isinstance(function := plain.get("function"), Mapping) and FIELD in function:
        plain = {**plain, "function": _without(function, mark, f"{where}.function", marks)}
    return plain


def _plain_message(message: Any, index: int, marks: list[Mark]) -> Any:
    where = f"messages[{index}]"
    if isinstance(message, Mapping) and isinstance(content := message.get("content"), list):
        parts = [
            _without(part, Mark(message=index, part=i), f"{where}.content[{i}]", marks)
            for i, part in enumerate(content)
        ]
        message = {**message, "content": parts}
    return _without(message, Mark(message=index), where, marks)


def _without(value: Any, mark: Mark, where: str, marks: list[Mark]) -> Any:
    if not isinstance(value, Mapping) or FIELD not in value:
        return value
    control = value[FIELD]
    if control is not None:
        valid = isinstance(control, Mapping) and control.keys() <= {"type", "ttl"}
        if not valid or control.get("type") != "ephemeral" or control.get("ttl") not in _LIFETIMES:
            raise RequestError(
                f"{where}.{FIELD} is not understood.", "", 'Write {"type": "ephemeral"}.', param=f"{where}.{FIELD}"
            )
        marks.append(mark)
    return {key: item for key, item in value.items() if key != FIELD}


def place_marks(conversation: Unmarked, prompt: Prompt, render: Render) -> list[int | None]:
    """For each mark the number of `prompt`'s tokens before its place; None where the template leaves no such place.

    `render` is what made `prompt` of the conversation's messages and tools. A message that calls tools is marked at
    the end of its text.
    """
    return [_place(conversation, mark, prompt, render) for mark in conversation.marks]


def _place(conversation: Unmarked, mark: Mark, prompt: Prompt, render: Render) -> int | None:
    word = f"mark{secrets.token_hex(8)}"
    messages, tools = list(conversation.messages), list(conversation.tools)
    if mark.tool is not None:
        tools = [*tools[: mark.tool + 1], {"type": "function", "function": {"name": word, "parameters": {}}}]
    else:
        assert mark.message is not None
        messages[mark.message] = _longer(messages[mark.message], mark.part, f" {word}")
    try:
        other = render(messages, tools)
    except RequestError as error:
        log.debug("a mark has no place: %s", error)
        return None
    before = other.text.partition(word)[0]
    if before == other.text or (mark.tool is None and not prompt.text.startswith(before.rstrip())):
        log.debug("a mark has no place: the template does not write the marked text, or writes it otherwise")
        return None
    return _shared(prompt.ids, other.ids)


def _longer(message: Message, part: int | None, tail: str) -> Message:
    """`message` with `tail` after its content, or after one part of it."""
    content = message.get("content")
    if isinstance(content, list) and content:
        at = len(content) - 1 if part is None else part
        parts = [{**p, "text": p["text"] + tail} if i == at else p for i, p in enumerate(content)]
        return {**message, "content": parts}
    return {**message, "content": (content or "") + tail}


def _shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two prompts begin with in common."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
