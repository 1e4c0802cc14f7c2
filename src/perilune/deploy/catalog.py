"""The recipes that come with perilune. A file may extend another: its lists are appended, its values win."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from perilune.deploy.recipe import Recipe
from perilune.deploy.strict import parse, read_toml
from perilune.errors import ConfigError, nearest

FOLDER = Path(__file__).parent / "recipes"
_NAMES = {"argv": "flag", "environment": "variable", "rule": "id", "package": "package", "cache": "volume"}


@cache
def recipes(folder: Path = FOLDER) -> tuple[Recipe, ...]:
    """Every recipe of `folder`, by name; files that begin with `_` are only extended. Raises ConfigError."""
    found: dict[str, Recipe] = {}
    for path in sorted(folder.glob("[!_]*.toml")):
        tables = _extended(path)
        hosts = tables.pop("hosts", None) or [tables.get("host")]
        for host in hosts:
            recipe = parse(Recipe, {**tables, "host": host}, path.name)
            if recipe.name in found:
                raise ConfigError(f"{path.name}: there is a second recipe {recipe.name}.")
            found[recipe.name] = recipe
    return tuple(found[name] for name in sorted(found))


def _extended(path: Path) -> dict[str, Any]:
    tables = read_toml(path)
    base = tables.pop("extends", None)
    return tables if base is None else merge(_extended(path.with_name(f"{base}.toml")), tables)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`. In a list, an item that has the name of an earlier one takes its place."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            name = _NAMES.get(key)
            replaced = {item.get(name) for item in value} if name else set()
            merged[key] = [item for item in old if not name or item.get(name) not in replaced] + value
        else:
            merged[key] = value
    return merged


def recipe(name: str, known: Iterable[Recipe] | None = None) -> Recipe:
    """The recipe called `model/host/engine`. Raises ConfigError naming the nearest."""
    listed = {found.name: found for found in (recipes() if known is None else known)}
    if name not in listed:
        raise ConfigError(f"There is no recipe {name!r}.", "", f"{nearest(name, listed)} `perilune recipe ls` has all.")
    return listed[name]


def find(model: str, host: str, engine: str) -> Recipe:
    """The recipe for `model`, a recipe's model name or its checkpoint, else the host's recipe for any model.

    Raises ConfigError with the recipes there are for the host, or for the model.
    """
    fitting = [found for found in recipes() if found.host == host and found.engine == engine]
    for found in fitting:
        if model in (found.model, found.checkpoint, found.config):
            return found
    for found in fitting:
        if found.model == "*":
            return found
    near = [found.name for found in recipes() if found.model == model] or [
        found.name for found in recipes() if found.host == host
    ]
    raise ConfigError(
        f"There is no recipe for {model} on {host} with {engine}.",
        f"There are {', '.join(near)}." if near else "",
        nearest(model, {found.model for found in recipes()} - {"*"}),
    )
