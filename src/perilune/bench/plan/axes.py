"""Axes to combinations of names. The only place where a ladder is climbed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from perilune.bench.spec.sweep import Axes, Axis, Ladder, Linear
from perilune.errors import ConfigError


def values(axis: Axis) -> list[Any]:
    """The values of one axis in order. Raises ConfigError if they would be more than 10,000."""
    match axis:
        case Ladder():
            return _climb(axis.ladder[0], axis.ladder[1], lambda value: max(value + 1, int(value * axis.factor)))
        case Linear():
            start, stop = axis.linear
            found = _climb(start, stop, lambda value: value + axis.step)
            return [int(value) if float(value).is_integer() else value for value in found]
        case list():
            return list(axis)
        case _:
            return [axis]


def _climb(start: Any, stop: Any, step: Any) -> list[Any]:
    if start > stop:
        raise ConfigError(f"The axis goes down, from {start} to {stop}.", fix="Write the smaller end first.")
    found = [start]
    while found[-1] < stop:
        found.append(min(step(found[-1]), stop))
        if len(found) > 10_000:
            raise ConfigError(f"The axis from {start} to {stop} has more than 10,000 values.", fix="Take larger steps.")
    return found


def product(axes: Axes) -> Iterator[dict[str, Any]]:
    """Every combination, the last axis fastest. Raises ConfigError for a name on two axes or an uneven link."""
    names = [key.split("+") for key in axes]
    flat = [name.strip() for group in names for name in group]
    for name in flat:
        if flat.count(name) > 1:
            raise ConfigError(f"{name!r} is on two axes.", fix="Name each once.")
    columns = [_linked(group, values(axis)) for group, axis in zip(names, axes.values(), strict=True)]
    for row in itertools.product(*columns):
        yield {key: value for part in row for key, value in part.items()}


def _linked(group: list[str], found: list[Any]) -> list[dict[str, Any]]:
    if len(group) == 1:
        return [{group[0]: value} for value in found]
    rows = []
    for row in found:
        if not isinstance(row, list) or len(row) != len(group):
            raise ConfigError(
                f"{'+'.join(group)} moves {len(group)} names together, but has the value {row!r}.",
                fix=f"Write lists of {len(group)} values each.",
            )
        rows.append({name.strip(): value for name, value in zip(group, row, strict=True)})
    return rows
