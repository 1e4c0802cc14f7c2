"""Questions with three answers, over the point that is asked for and over what the doctor found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from pydantic import field_validator, model_validator

from perilune.deploy.strict import Strict
from perilune.errors import ConfigError, nearest
from perilune.host.doctor import RULES
from perilune.host.rule import Check, Status

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


class Truth(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Answer:
    """The answer and what it rests on, in words."""

    truth: Truth
    says: str


class Condition(Strict):
    """Either `point`, a field of Point, or `check`, an id of a doctor rule.

    A point is compared with `is`, `at-least`, `at-most`. A check without `is` holds if its status is pass, info or
    skip and does not if it is warn or fail; with `is` its value is compared.
    """

    point: str | None = None
    check: str | None = None
    is_: tuple[str | int, ...] | None = None
    at_least: int | None = None
    at_most: int | None = None

    @field_validator("is_", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _named(self) -> Condition:
        if (self.point is None) == (self.check is None):
            raise ConfigError("A condition asks for either `point` or `check`.")
        if self.point is not None and self.point not in POINT:
            raise ConfigError(f"A point has no {self.point!r}.", "", nearest(self.point, POINT))
        if self.check is not None and self.check not in CHECKS:
            raise ConfigError(f"The doctor has no rule {self.check!r}.", "", nearest(self.check, CHECKS))
        return self

    def ask(self, point: Point, checks: Mapping[str, Check]) -> Answer:
        """The answer for `point` on the host that `checks` describe, by id; a check that is not there is unknown."""
        if self.point is not None:
            found = getattr(point, self.point)
            return Answer(Truth.YES if self._holds(found) else Truth.NO, f"{self.point} is {found}")
        check = checks.get(self.check or "")
        if check is None:
            return Answer(Truth.UNKNOWN, f"{self.check} was not looked at on this host")
        says = f"{check.id}: {check.says}"
        if check.status is Status.UNKNOWN:
            return Answer(Truth.UNKNOWN, says)
        if self.is_ is not None or self.at_least is not None or self.at_most is not None:
            if check.value is None:
                return Answer(Truth.UNKNOWN, says)
            return Answer(Truth.YES if self._holds(check.value) else Truth.NO, says)
        return Answer(Truth.NO if check.status in (Status.WARN, Status.FAIL) else Truth.YES, says)

    def _holds(self, found: str | int) -> bool:
        if self.is_ is not None and found not in self.is_:
            return False
        limits = (self.at_least, self.at_most)
        if limits != (None, None) and not isinstance(found, int):
            return False
        number = found if isinstance(found, int) else 0
        return (self.at_least is None or number >= self.at_least) and (self.at_most is None or number <= self.at_most)
