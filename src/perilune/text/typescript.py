"""Tools declared in TypeScript, as Kimi-K2.5 and its successors saw them in training.

Their chat templates print `tools_ts_str` where there is one and JSON where not. The hub's tokenizer makes it in code of
its own, which is never run here; this writes the same text, its oddities included: a model knows no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any] | bool

_INDENT = "  "
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_UNION = {
    "string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null",
    "object": "{}", "array": "Array<any>",
}  # fmt: skip
_NUMERIC = ("maximum", "minimum")
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": _NUMERIC,
    "integer": _NUMERIC,
    "array": ("maxItems", "minItems"),
}
_ENUM_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "number": (int, float), "integer": int, "boolean": bool,
}  # fmt: skip


def declarations(tools: Iterable[Mapping[str, Any]]) -> str | None:
    """All function tools, whose keys are sorted. None if a schema has no form here: the template then prints JSON."""
    try:
        functions = [_Function(tool["function"]).declaration() for tool in tools]
    except _MALFORMED:  # a client's JSON schema can be any JSON
        return None
    return "\n".join(["# Tools\n", "## functions", "namespace functions {", *functions, "}\n"])


class _Function:
    """One function, and what its schema names: `$defs` become interfaces, `#` the interface `parameters`."""

    def __init__(self, function: Mapping[str, Any]) -> None:
        self._function = function
        self._named: dict[str, Any] = {}
        self._recursive = False

    def declaration(self) -> str:
        schema = self._function.get("parameters") or {}
        parameters, interfaces = self._object(schema, ""), []
        if self._recursive:
            fields = list(self._fields(schema, _INDENT).values())
            interfaces.append(f"interface parameters {_braces(fields, '')}" if fields else "interface parameters {}")
            parameters = "parameters"
        for name, named in list(self._named.items()):
            about = _comment(named.get("description"), "")
            interfaces.append(f"{about}interface {name} {self._type(named, '')}")
        about = _comment(self._function.get("description"), "")
        return "\n".join([*interfaces, f"{about}type {self._function['name']} = (_: {parameters}) => any;"])

    def _type(self, schema: Schema, indent: str) -> str:
        """The type of a value that follows `indent` on its line. Raises one of _MALFORMED."""
        form = _form(schema)
        if isinstance(schema, bool) or form == "any":
            return form
        if form == "$ref":
            return self._reference(schema["$ref"])
        if form == "anyOf":
            return " | ".join(self._type(one, indent) for one in schema["anyOf"])
        if form == "enum":
            return _enum(schema)
        if form == "union":
            return " | ".join(_UNION[name] for name in schema["type"])
        if form == "object":
            return self._object(schema, indent)
        if form == "array":
            return self._array(schema.get("items") or True, indent)
        return "number" if form == "integer" else form

    def _object(self, schema: Mapping[str, Any], indent: str) -> str:
        inner = indent + _INDENT
        self._named.update(schema.get("$defs") or {})
        rest = schema.get("additionalProperties")
        if rest is None:
            others = []
        else:
            value = "never" if rest is False else self._type(rest, inner)
            others = [f"{inner}[k: string]: {value}"]
        fields, required = self._fields(schema, inner), schema.get("required", [])
        first = sorted(fields, key=lambda name: (name not in required, name))
        lines = [*(fields[name] for name in first), *others]
        return _braces(lines, indent) if lines else "{}"

    def _fields(self, schema: Mapping[str, Any], indent: str) -> dict[str, str]:
        required = schema.get("required", [])
        fields = {}
        for name, value in schema.get("properties", {}).items():
            default = value.get("default") if isinstance(value, dict) else None
            about = _documentation(value, indent)
            if default is not None:
                shown = repr(default) if isinstance(default, int | float) else json.dumps(default, ensure_ascii=False)
                about += f"{indent}// Default: {shown}\n"
            mark = "" if name in required else "?"
            fields[name] = f"{about}{indent}{name}{mark}: {self._type(value, indent)}"
        return fields

    def _array(self, item: Schema, indent: str) -> str:
        inner = indent + _INDENT
        about = _documentation(item, inner)
        if about:
            return f"Array<\n{about}{inner}{self._type(item, inner)}\n{indent}>"
        return f"Array<{self._type(item, indent)}>"

    def _reference(self, target: str) -> str:
        if target == "#":
            self._recursive = True
            return "parameters"
        name = target.split("/")[-1]
        if not target.startswith("#/$defs/") or not isinstance(self._named[name], dict):
            raise ValueError(f"{target} is no definition")
        return name


def _form(schema: Schema) -> str:
    """What decides how a schema is written: one of its keys, or its type."""
    if isinstance(schema, bool):
        return "any" if schema else "null"
    for key in ("$ref", "anyOf", "enum"):
        if key in schema:
            return key
    if not schema:
        return "any"
    kind = schema["type"]
    return "union" if isinstance(kind, list) else str(kind)


def _enum(schema: Mapping[str, Any]) -> str:
    """Values as they are, strings quoted without escapes. Raises ValueError if they are not of the declared type."""
    declared = schema.get("type")
    if isinstance(declared, list):
        if not declared or len(declared) > 2 or (len(declared) == 2 and "null" not in declared):
            raise ValueError(f"an enum of {declared}")
        declared = next((name for name in declared if name != "null"), "null")
    wanted = _ENUM_TYPES.get(declared or "", object)
    if not all(value is None or isinstance(value, wanted) for value in schema["enum"]):
        raise ValueError(f"an enum of {declared} with a value of another type")
    return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])


def _documentation(schema: Schema, indent: str) -> str:
    """Comment lines for description and limits, each with its newline; empty if there is nothing to say."""
    if isinstance(schema, bool):
        return ""
    names = [name for name in _CONSTRAINTS.get(_form(schema), ()) if name in schema]
    limits = ", ".join(f"{name}: {schema[name]}" for name in names)
    return _comment(schema.get("description"), indent) + (f"{indent}// {limits}\n" if limits else "")


def _comment(text: str | None, indent: str) -> str:
    if not text:
        return ""
    return "".join(f"{indent}// {line}\n" if line else "\n" for line in text.split("\n"))


def _braces(lines: Sequence[str], indent: str) -> str:
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
