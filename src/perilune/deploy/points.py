"""The point that is asked for, and the names that conditions over it and over a host may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from perilune.deploy.condition import UNKNOWN, Fact
from perilune.errors import ConfigError
from perilune.host.doctor import RULES
from perilune.host.rule import Check, Status

if TYPE_CHECKING:
    from perilune.deploy.recipe import Recipe

CHECKS = frozenset(rule.id for rule in RULES)


@dataclass(frozen=True)
class Point:
    """What is asked of an engine: tokens per sequence, sequences at once, GPUs, and the port it answers at."""

    context: int
    concurrency: int
    tp: int = 1
    port: int = 8000

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ConfigError(f"--{field.name} {getattr(self, field.name)} is not possible.", "", "Use 1 or more.")

    @property
    def total_context(self) -> int:
        """Tokens of all sequences, which is how llama.cpp counts its context."""
        return self.context * self.concurrency


POINT = frozenset(field.name for field in fields(Point))


def names_of(point: Point, checks: Mapping[str, Check]) -> dict[str, Any]:
    """What a condition can ask: the point's fields, and every rule of the doctor; one not looked at is unknown."""
    return asdict(point) | {id: fact_of(id, checks.get(id)) for id in CHECKS}


def fact_of(id: str, check: Check | None) -> Fact:
    """The doctor's verdict as a fact: pass, info and skip are ok, warn and fail are not."""
    if check is None:
        return Fact(UNKNOWN, UNKNOWN, f"{id} was not looked at on this host")
    ok = UNKNOWN if check.status is Status.UNKNOWN else check.status not in (Status.WARN, Status.FAIL)
    value = UNKNOWN if ok is UNKNOWN or check.value is None else check.value
    return Fact(value, ok, f"{id}: {check.says}")


def point_of(
    recipe: Recipe,
    *,
    context: int | None = None,
    concurrency: int | None = None,
    tp: int | None = None,
    port: int = 8000,
) -> Point:
    """None takes the recipe's default."""
    own = recipe.point
    return Point(
        own.context if context is None else context,
        own.concurrency if concurrency is None else concurrency,
        own.tp if tp is None else tp,
        port,
    )
