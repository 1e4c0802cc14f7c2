"""Checks chat messages and tools, and brings them into the one shape that templates get."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from perilune.errors import RequestError, nearest

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "observation")
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class Arguments(dict[str, Any]):
    """A past tool call's arguments. Templates may walk the items or ask for JSON, which is then the text as sent."""

    def __init__(self, items: Mapping[str, Any], json_text: str) -> None:
        super().__init__(items)
        self._json_text = json_text


def checked_messages(messages: Sequence[Mapping[str, Any]], *, splits_thinking: bool) -> list[dict[str, Any]]:
    """Messages with a known role and string content (text parts joined, None as ""); tool arguments parsed.

    With `splits_thinking`, `<think>a</think>b` in an assistant's content becomes reasoning_content and content:
    templates drop old reasoning by those markers, and could not see them as user text.
    Raises RequestError whose `param` is the path of the bad field.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError("messages must be a list with at least one message.", param="messages")
    return [_message(message, f"messages[{i}]", splits_thinking) for i, message in enumerate(messages)]


def _message(message: Any, where: str, splits_thinking: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object.", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{where} has role {role!r}.", nearest(str(role), ROLES), param=f"{where}.role")
    out = dict(message)
    out["role"] = "system" if role == "developer" else role
    out["content"] = _content(message.get("content"), f"{where}.content")
    for key in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        if out.get(key) is None:
            out.pop(key, None)
        elif not isinstance(out[key], str):
            raise RequestError(f"{where}.{key} must be a string.", param=f"{where}.{key}")
    if role == "assistant":
        _assistant(out, where, splits_thinking)
    return out


def require_continuable(message: Mapping[str, Any], where: str) -> None:
    """A checked message that the model can go on writing. Raises RequestError."""
    why = None
    if message["role"] != "assistant":
        why = f"Its role is {message['role']!r}, and the answer is the assistant's."
    elif message.get("tool_calls"):
        why = "It ends with tool_calls."
    elif not message["content"].strip():
        why = "It has no content."
    if why:
        fix = "End messages with the beginning of the assistant's answer, or leave continue_final_message out."
        raise RequestError(f"{where} cannot be continued.", why, fix, param="continue_final_message")


def _assistant(out: dict[str, Any], where: str, splits_thinking: bool) -> None:
    if "reasoning" in out:
        out.setdefault("reasoning_content", out.pop("reasoning"))
    if splits_thinking and "reasoning_content" not in out and "</think>" in out["content"]:
        thought, _, rest = out["content"].partition("</think>")
        out["reasoning_content"] = thought.split("<think>")[-1].strip("\n")
        out["content"] = rest.lstrip("\n")
    calls = out.pop("tool_calls", None)
    if calls is None or calls == []:
        return
    if not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls must be a list.", param=f"{where}.tool_calls")
    out["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of text parts.", param=where)
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            what = f"{where}[{i}] is not a text part but {kind!r}."
            raise RequestError(what, "Only text is served.", param=f"{where}[{i}]")
    return "".join(part["text"] for part in content)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} needs function.name.", param=f"{where}.function.name")
    if not isinstance(call.get("id", ""), str):
        raise RequestError(f"{where}.id must be a string.", param=f"{where}.id")
    return {**call, "type": "function", "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(arguments: Any) -> Any:
    """Text that is no JSON object (a model once wrote it so) stays text: refusing would end the conversation."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    text = text.strip() or "{}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return Arguments(value, text) if isinstance(value, dict) else text


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Function tools, or None if there are none. Raises RequestError whose `param` is the path of the bad field."""
    if not tools:
        return None
    if not isinstance(tools, list | tuple):
        raise RequestError("tools must be a list.", param="tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            what = f"tools[{i}] is not a function tool."
            raise RequestError(what, 'It needs {"type": "function", "function": {...}}.', param=f"tools[{i}]")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            why = "Letters, digits and _ . : / - are allowed, up to 128."
            raise RequestError(f"tools[{i}] has name {name!r}.", why, param=f"tools[{i}].function.name")
        if not isinstance(function.get("parameters") or {}, Mapping):
            what = f"tools[{i}].function.parameters must be a JSON schema."
            raise RequestError(what, param=f"tools[{i}].function.parameters")
    return [dict(tool) for tool in tools]


def deep_sorted(value: Any) -> Any:
    """The same JSON value with the keys of every object in order; Kimi was trained on tools written so."""
    if isinstance(value, Mapping):
        return {key: deep_sorted(value[key]) for key in sorted(value)}
    return [deep_sorted(item) for item in value] if isinstance(value, list | tuple) else value
