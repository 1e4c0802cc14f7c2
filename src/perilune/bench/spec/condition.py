"""Conditions over the names of a point: `tp < 8 and not (ep == 1)`, with a third truth value for what is not known.

Parsed with Python's grammar, evaluated here: names, literals, comparisons, `in`, `and`, `or`, `not`, `+ - * / // %`,
and `unknown(name)`. Nothing is called and nothing is looked up by attribute.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perilune.errors import ConfigError, nearest

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "unknown"})()
"""A fact nobody could read, such as the firmware of a GPU that is not there."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """`text` as written; `names` what it reads."""

    text: str
    names: frozenset[str]
    _tree: ast.expr

    def value(self, names: Mapping[str, Any]) -> Any:
        """The value, or UNKNOWN. Raises ConfigError for a missing name, a wrong type or a division by zero."""
        for name in sorted(self.names):
            if name not in names:
                raise ConfigError(f"{self.text!r} names {name!r}, which no point has.", fix=nearest(name, names))
        try:
            return _value(self._tree, names)
        except (TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"{self.text!r} cannot be evaluated.", f"{error}.") from error

    def holds(self, names: Mapping[str, Any]) -> bool:
        """True or false. Raises ConfigError if what decides it is not known."""
        value = self.value(names)
        if value is UNKNOWN:
            facts = ", ".join(sorted(name for name in self.names if names[name] is UNKNOWN))
            raise ConfigError(
                f"{self.text!r} cannot be decided.",
                f"Not known here: {facts}.",
                f"Say what then: `unknown({facts.split(', ')[0]}) or …`, or give the fact with --fact.",
            )
        return bool(value)


def parse_condition(text: str) -> Condition:
    """Raises ConfigError for anything but the forms named above. Dotted names (`argv.block-size`) are not names."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{text!r} is no condition.", f"{error}.", "Write something like `tp == 4 and conc > 64`."
        ) from error
    names: set[str] = set()
    _check(tree, text, names)
    return Condition(text, frozenset(names), tree)


def _check(node: ast.expr, text: str, names: set[str]) -> None:
    if isinstance(node, ast.Name):
        names.add(node.id)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return
    inner: list[ast.expr] | None = None
    if isinstance(node, ast.BoolOp):
        inner = node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        inner = [node.operand]
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        inner = [node.left, node.right]
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        inner = [node.left, *node.comparators]
    elif isinstance(node, ast.List | ast.Tuple):
        inner = node.elts
    elif _asks_unknown(node):
        assert isinstance(node, ast.Call)
        inner = node.args
    if inner is None:
        part = ast.unparse(node)
        raise ConfigError(
            f"{text!r} is no condition.",
            f"{part!r} is not allowed in one.",
            "Names, numbers, strings, comparisons, `in`, and, or, not, + - * / // % and unknown(name) are.",
        )
    for each in inner:
        _check(each, text, names)


def _asks_unknown(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "unknown"
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Name)
        and not node.keywords
    )


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name():
            return names[node.id]
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            values = [_value(each, names) for each in node.elts]
            return UNKNOWN if any(value is UNKNOWN for value in values) else values
        case ast.Call():
            return _value(node.args[0], names) is UNKNOWN
        case ast.UnaryOp():
            value = _value(node.operand, names)
            return UNKNOWN if value is UNKNOWN else (not value) if isinstance(node.op, ast.Not) else -value
        case ast.BinOp():
            left, right = _value(node.left, names), _value(node.right, names)
            return UNKNOWN if UNKNOWN in (left, right) else _ARITHMETIC[type(node.op)](left, right)
        case ast.BoolOp():
            return _logic(isinstance(node.op, ast.And), [_value(each, names) for each in node.values])
        case ast.Compare():
            return _compared(node, names)
    raise AssertionError(ast.dump(node))


def _logic(conjunction: bool, values: list[Any]) -> Any:
    """Kleene's three-valued and/or: one false decides an `and`, one true an `or`, whatever else is unknown."""
    known = [bool(value) for value in values if value is not UNKNOWN]
    if conjunction:
        return False if not all(known) else UNKNOWN if len(known) < len(values) else True
    return True if any(known) else UNKNOWN if len(known) < len(values) else False


def _compared(node: ast.Compare, names: Mapping[str, Any]) -> Any:
    values = [_value(each, names) for each in (node.left, *node.comparators)]
    results = [
        UNKNOWN if UNKNOWN in (a, b) else _COMPARE[type(op)](a, b)
        for a, op, b in zip(values, node.ops, values[1:], strict=False)
    ]
    return _logic(True, results)
