"""Writes a JSON object from keys and raw values, with types from a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LITERALS = {"True": "true", "False": "false", "None": "null"}
_MAX_DEPTH = 8
_STRING = frozenset(["string"])


class JsonObject:
    """Each method returns the text that it adds; joined, they are one JSON object.

    String values go out as they come in. Others wait for their end, where it shows whether they are JSON.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._members = 0
        self._kinds: frozenset[str] | None = None
        self._raw = ""

    def key(self, key: str) -> str:
        before = self.end_value() + (", " if self._members else "{")
        self._members += 1
        properties = self._schema.get("properties")
        self._kinds = kinds(properties.get(key) if isinstance(properties, Mapping) else None, self._schema)
        return f"{before}{_quoted(key)}: " + ('"' if self._streams else "")

    def value(self, text: str) -> str:
        if self._streams:
            return _quoted(text)[1:-1]
        self._raw += text
        return ""

    def end_value(self) -> str:
        """Closes the open value, if there is one."""
        if self._kinds is None:
            return ""
        end = '"' if self._streams else typed(self._raw, self._kinds)
        self._kinds, self._raw = None, ""
        return end

    def close(self) -> str:
        return self.end_value() + ("}" if self._members else "{}")

    @property
    def _streams(self) -> bool:
        return self._kinds == _STRING


def typed(raw: str, wanted: frozenset[str]) -> str:
    """`raw` as JSON text: as it stands if it is JSON of a wanted type (or no type is known), else a string."""
    text = raw.strip()
    if text in _LITERALS and "string" not in wanted:
        text = _LITERALS[text]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _quoted(raw)
    return _quoted(raw) if "string" in wanted and not _kinds_of_value(value) & wanted else text


def kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The JSON types that `schema` allows; empty if it does not say. Follows local `$ref`s."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return frozenset()
    if isinstance(schema.get("$ref"), str):
        return kinds(_resolved(schema["$ref"], root), root, depth + 1)
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset([named])
    if isinstance(named, list):
        return frozenset(kind for kind in named if isinstance(kind, str))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return frozenset().union(*map(_kinds_of_value, values))
    branches = [branch for key in ("anyOf", "oneOf", "allOf") for branch in schema.get(key) or ()]
    return frozenset().union(*(kinds(branch, root, depth + 1) for branch in branches))


def _resolved(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#").strip("/").split("/"):
        root = root.get(part) if isinstance(root, Mapping) else None
    return root


def _kinds_of_value(value: Any) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(["boolean"])
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset(["integer", "number"])
    names = {float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return frozenset([names[type(value)]]) if type(value) in names else frozenset()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
