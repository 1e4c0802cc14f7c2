"""Flags and variables that engines no longer have, or that never helped: refused with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from pydantic import field_validator

from perilune.deploy.recipe import Reason, Recipe
from perilune.deploy.strict import parse, read_toml
from perilune.deploy.version import Version, version
from perilune.errors import ConfigError


class Stale(Reason):
    """`name`, a flag or a variable, is of no use from version `from` on, or ever; `engine` may be `*`."""

    engine: str
    name: str
    from_: str | None = None
    hosts: tuple[str, ...] = ()
    instead: str

    @field_validator("hosts", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    def concerns(self, recipe: Recipe, found: Version | None) -> bool:
        """Whether it is stale for this recipe; an unknown version counts as new."""
        if self.engine not in ("*", recipe.engine) or (self.hosts and recipe.host not in self.hosts):
            return False
        return self.from_ is None or found is None or found >= version(self.from_)


@cache
def known_stale() -> tuple[Stale, ...]:
    path = Path(__file__).with_name("stale.toml")
    return tuple(parse(Stale, table, path.name) for table in read_toml(path)["stale"])


def stale_among(names: Iterable[str], recipe: Recipe, found: Version | None) -> Iterator[Stale]:
    """What of `names` is stale; `--flag=value` counts as `--flag`."""
    asked = {name.partition("=")[0] for name in names}
    for item in known_stale():
        if item.name in asked and item.concerns(recipe, found):
            yield item


def refuse_stale(names: Iterable[str], recipe: Recipe, found: Version | None) -> None:
    """Raises ConfigError for the first stale name, with its reason and what to do instead."""
    for item in stale_among(names, recipe, found):
        since = f" from {recipe.engine} {item.from_} on" if item.from_ else ""
        raise ConfigError(f"{item.name} is of no use{since}.", f"{item.why}.", f"Instead: {item.instead}.")
