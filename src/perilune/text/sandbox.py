"""A Jinja environment for templates that came with a checkpoint: no attribute tricks, no endless work.

Bounded per render: loop and macro steps, seconds (looked at on every step), characters written, the size of what
`+ * ** % ~` make, and padding widths. Not covered: one built-in call on text that is already huge (`replace`, `join`).
An operator chooses the checkpoint; this stops mistakes and simple bombs, it is no jail.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import ext, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 250_000
MAX_SECONDS = 5.0
MAX_CHARS = 4_000_000
MAX_INT_BITS = 4096
_BUDGET = "__budget__"
_WIDE = re.compile(r"\d{4}|\*|:[^}]*\{")  # a padding width of four digits, or one taken from an argument


class TemplateLimitError(jinja2.TemplateError):
    """A template did more work than any chat needs."""


class Budget:
    """What one render may still do. `chars` grows with the input, because templates repeat what they are given."""

    def __init__(self, input_chars: int) -> None:
        self.steps, self.chars = MAX_STEPS, MAX_CHARS + 8 * input_chars
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0 or time.monotonic() > self.deadline:
            raise TemplateLimitError(f"more than {MAX_STEPS} steps or {MAX_SECONDS:g} seconds")

    def write(self, chars: int) -> None:
        self.chars -= chars
        self.fits(0)

    def fits(self, chars: int) -> None:
        if chars > self.chars or self.chars < 0:
            raise TemplateLimitError("the text grows without bound")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The settings every hub template assumes: trimmed blocks, loop controls, plain text without escaping."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        extensions: list[type[ext.Extension]] = [ext.LoopControlExtension, GenerationExtension]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_written)
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)
        self.filters.pop("center")
        self.filters["format"] = _guarded(self.filters["format"])
        self.filters["indent"] = _guarded(self.filters["indent"])

    def bounded_template(self, source: str) -> jinja2.Template:
        """Raises jinja2.TemplateSyntaxError."""
        return self.from_string(_Bounds(self).visit(self.parse(source)))

    def render(self, template: jinja2.Template, variables: dict[str, Any], input_chars: int) -> str:
        """Raises TemplateLimitError, and whatever else the template raises."""
        return template.render({**variables, _BUDGET: Budget(input_chars)})

    def tick(self, context: Context, chars: int) -> None:
        """One pass through a loop or macro body that holds `chars` characters of plain text."""
        _budget(context).step()
        _budget(context).write(chars)

    def joined(self, context: Context, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        _budget(context).fits(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "%" and isinstance(left, str):
            _check_width(left)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_INT_BITS:
                raise TemplateLimitError("a number grows without bound")
        elif operator == "*":
            budget.fits(max(_length(left), 1) * max(_length(right), 1))
        elif operator == "+":
            budget.fits(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in {"ljust", "rjust", "center", "zfill", "expandtabs", "format_map"}
        return not padding and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_width(value.__self__)
        return wrapped


class GenerationExtension(ext.Extension):
    """`{% generation %}` marks assistant text for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja declares an extension's tags so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounds(NodeTransformer):
    """Puts a tick into every loop and macro body, and sends `~` through a check of its size."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", node.nodes, node.lineno)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        chars = sum(len(data.data) for child in node.body for data in _plain_text(child))
        node.body.insert(0, nodes.ExprStmt(self._call("tick", [nodes.Const(chars)], node.lineno), lineno=node.lineno))
        return node  # type: ignore[no-any-return]  # jinja's node fields are untyped

    def _call(self, method: str, args: list[nodes.Expr], line: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(method)
        call = nodes.Call(function, [nodes.ContextReference(), *args], [], None, None)
        return call.set_lineno(line).set_environment(self._environment)  # type: ignore[return-value]  # returns Node


def _plain_text(node: nodes.Node) -> list[nodes.TemplateData]:
    own = [node] if isinstance(node, nodes.TemplateData) else []
    return [*own, *node.find_all(nodes.TemplateData)]


def _budget(context: Context) -> Budget:
    budget: Budget = context.parent[_BUDGET]  # not context[...]: a template may assign to any name of its own
    return budget


@pass_context
def _written(context: Context, value: Any) -> Any:
    text = str(value)
    _budget(context).write(len(text))
    return text


def _length(value: Any) -> int:
    if isinstance(value, int):
        return value
    return len(value) if hasattr(value, "__len__") else 0


def _check_width(text: str) -> None:
    if _WIDE.search(text):
        raise SecurityError("formatting with a width of four digits or more, or a computed one, is not allowed")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_width(value if function.__name__ == "do_format" else " ".join(map(str, [*args, *kwargs.values()])))
        return function(value, *args, **kwargs)

    return checked
