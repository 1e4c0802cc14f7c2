"""Conditions over a point and a host: `tp < 8 and not ok("fw.mec")`, with a third truth value for what is not known.

Parsed with Python's grammar, evaluated here: names, literals, comparisons, `in`, `and`, `or`, `not`, `+ - * / // %`,
`unknown(name)`, and of the doctor's rules `ok("fw.mec")`, its verdict, and `value("fw.mec")`, what it read. Nothing
else is called and nothing is looked up by attribute. Recipes and sweep files ask in this one language.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from perilune.errors import ConfigError, nearest

UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda self: "unknown"})()
"""A fact nobody could read, such as the firmware of a GPU that is not there."""


class Truth(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Answer:
    """The answer and what it rests on, in words."""

    truth: Truth
    says: str


@dataclass(frozen=True)
class Fact:
    """What one of the doctor's rules found: `value`, and whether that is `ok`; either may be UNKNOWN."""

    value: Any
    ok: Any
    says: str


_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_QUESTIONS = ("unknown", "ok", "value")
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
        self.check_names(names)
        try:
            return _value(self._tree, names)
        except (TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"{self.text!r} cannot be evaluated.", f"{error}.") from error

    def check_names(self, valid: Iterable[str]) -> None:
        """Raises ConfigError for a name that is not `valid`, naming the nearest."""
        known = set(valid)
        for name in sorted(self.names - known):
            raise ConfigError(f"{self.text!r} names {name!r}, which no point has.", fix=nearest(name, known))

    def ask(self, names: Mapping[str, Any]) -> Answer:
        """The answer with what was found for each name. Raises ConfigError as `value`."""
        value = self.value(names)
        truth = Truth.UNKNOWN if value is UNKNOWN else Truth.YES if value else Truth.NO
        found = ((name, names[name]) for name in sorted(self.names))
        return Answer(truth, "; ".join(f.says if isinstance(f, Fact) else f"{name} is {f}" for name, f in found))

    def holds(self, names: Mapping[str, Any]) -> bool:
        """True or false. Raises ConfigError if what decides it is not known."""
        value = self.value(names)
        if value is UNKNOWN:
            facts = ", ".join(sorted(name for name in self.names if _is_unknown(names[name])))
            raise ConfigError(
                f"{self.text!r} cannot be decided.",
                f"Not known here: {facts}.",
                f"Say what then: `unknown({_asked(facts.split(', ')[0])}) or …`, or give the fact with --fact.",
            )
        return bool(value)


def _is_unknown(found: Any) -> bool:
    return found is UNKNOWN or (isinstance(found, Fact) and UNKNOWN in (found.ok, found.value))


def _asked(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'


@cache
def parse_condition(text: str) -> Condition:
    """Raises ConfigError for anything but the forms named above."""
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
    elif (name := _asked_of(node)) is not None:
        names.add(name)
        return
    if inner is None:
        part = ast.unparse(node)
        raise ConfigError(
            f"{text!r} is no condition.",
            f"{part!r} is not allowed in one.",
            "Names, numbers, strings, comparisons, `in`, and, or, not, + - * / // %, unknown(name), ok(name) and "
            "value(name) are.",
        )
    for each in inner:
        _check(each, text, names)


def _asked_of(node: ast.expr) -> str | None:
    """The name that `unknown(name)`, `ok("name")` or `value("name")` asks about; None for anything else."""
    match node:
        case ast.Call(func=ast.Name(id=question), args=[ast.Name(id=name)], keywords=[]) if question in _QUESTIONS:
            return name
        case ast.Call(func=ast.Name(id=question), args=[ast.Constant(value=str(name))], keywords=[]) if (
            question in _QUESTIONS
        ):
            return name
    return None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name():
            found = names[node.id]
            return found.value if isinstance(found, Fact) else found
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            values = [_value(each, names) for each in node.elts]
            return UNKNOWN if any(value is UNKNOWN for value in values) else values
        case ast.Call(func=ast.Name(id=question)):
            return _answer(question, names[_asked_of(node) or ""])
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


def _answer(question: str, found: Any) -> Any:
    fact = found if isinstance(found, Fact) else Fact(found, found, "")
    if question == "unknown":
        return fact.ok is UNKNOWN
    return fact.ok if question == "ok" else fact.value


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
