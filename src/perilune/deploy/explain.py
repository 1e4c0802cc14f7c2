"""Recipes and launches for people and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perilune.deploy.condition import Truth
from perilune.deploy.launch import Launch, Used
from perilune.deploy.recipe import Recipe
from perilune.deploy.sources import SOURCES

_MARK = {Truth.YES: ("✓", "green"), Truth.NO: ("✗", "bold red"), Truth.UNKNOWN: ("?", "magenta")}


def listing(recipes: Iterable[Recipe]) -> RenderableType:
    """One line for each recipe: what is served, with which image, and who has run it."""
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "image", "known"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.image.rpartition("/")[2], Text(recipe.known, "dim"))
    return table


def command(launch: Launch) -> str:
    """The launch as one shell command: variables, then words."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in launch.environment.items()]
    return " ".join([*variables, *map(shlex.quote, launch.argv)])


def to_json(launch: Launch) -> dict[str, Any]:
    return {
        "recipe": launch.recipe.name,
        "image": launch.recipe.image,
        "argv": list(launch.argv),
        "environment": launch.environment,
        "rules": [
            {"id": v.rule.id, "answer": str(v.answer.truth), "says": v.answer.says, "refuses": v.refuses}
            for v in launch.verdicts
        ],
    }


def explanation(launch: Launch) -> RenderableType:
    """Every flag, variable and rule with its reason and source; then what was left out."""
    recipe, point = launch.recipe, launch.point
    where = f"{point.concurrency} x {point.context} tokens, {point.tp} GPU{'s' * (point.tp > 1)}"
    parts: list[RenderableType] = [
        Text.assemble((recipe.title, "bold"), f"  {recipe.name}, {where}"),
        Text(f"{recipe.image}; {recipe.known}", "dim"),
    ]
    for title, used in (("flags", launch.flags), ("variables", launch.variables)):
        if used:
            parts += [Text(), Text(title, "bold"), _settings(used)]
    if launch.verdicts:
        parts += [Text(), Text("rules", "bold"), _rules(launch)]
    if launch.left:
        table = _grid()
        for left in launch.left:
            table.add_row("", _named(left.name, left.value), Text(left.why, "dim"))
        parts += [Text(), Text("left out", "bold"), table]
    return Group(*parts)


def _settings(used: Iterable[Used]) -> Table:
    table = _grid()
    for setting in used:
        why = Text(setting.why)
        if setting.says:
            why.append(f" ({setting.says})")
        why.append("".join(f"\n{SOURCES[key]}" for key in setting.source.split()), "dim")
        table.add_row("", _named(setting.name, setting.value), why)
    return table


def _rules(launch: Launch) -> Table:
    table = _grid()
    for verdict in launch.verdicts:
        mark, style = _MARK[verdict.answer.truth]
        why = Text.assemble(verdict.answer.says, "\n", (verdict.rule.why, "dim"))
        table.add_row(Text(mark, style), Text(verdict.rule.id, style), why)
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(max_width=48, overflow="fold")
    table.add_column()
    return table


def _named(name: str, value: str | None) -> Text:
    return Text(name if value is None else f"{name}={value}" if not name.startswith("-") else f"{name} {value}")


def differences(one: Launch, other: Launch) -> list[str]:
    """What `other` has that `one` has not, and the reverse, as lines of a diff; nothing if they start the same."""
    lines = []
    if one.recipe.image != other.recipe.image:
        lines += [f"- image {one.recipe.image}", f"+ image {other.recipe.image}"]
    if one.program != other.program:
        lines += [f"- {shlex.join(one.program)}", f"+ {shlex.join(other.program)}"]
    for mine, theirs in ((one.flags, other.flags), (one.variables, other.variables)):
        left, right = {used.name: used for used in mine}, {used.name: used for used in theirs}
        for name in dict.fromkeys((*left, *right)):
            pair = left.get(name), right.get(name)
            if pair[0] is None or pair[1] is None or pair[0].value != pair[1].value:
                lines += [f"{sign} {_named(name, used.value)}" for sign, used in zip("-+", pair, strict=True) if used]
    return lines
