"""A recipe: how one engine serves one model on one host, each flag and variable with a reason and a source."""

from __future__ import annotations

import string
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from perilune.deploy.condition import parse_condition
from perilune.deploy.points import CHECKS, POINT
from perilune.deploy.sources import SOURCES
from perilune.deploy.strict import Strict
from perilune.deploy.version import version
from perilune.errors import ConfigError, nearest

WORDS = frozenset((*POINT, "checkpoint", "served_name", "address", "total_context"))
"""What may stand in braces in a value."""

Engine = Literal["perilune", "vllm", "llama.cpp", "llama-cpp-python"]
Host = Literal["strix-halo", "mi300x", "mi355x", "cpu"]


def _known_words(text: str) -> str:
    for _, name, _, _ in string.Formatter().parse(text):
        if name is not None and name not in WORDS:
            raise ConfigError(f"{{{name}}} stands for nothing.", "", nearest(name, WORDS))
    return text


def _answerable(text: str | None) -> str | None:
    if text is not None:
        parse_condition(text).check_names(POINT | CHECKS)
    return text


class Reason(Strict):
    """Why something is so, and who says it: keys of `SOURCES`, with blanks between them."""

    why: str
    source: str

    @field_validator("source")
    @classmethod
    def _sources(cls, text: str) -> str:
        for key in text.split():
            if key not in SOURCES:
                raise ConfigError(f"{key!r} is no source.", "", nearest(key, SOURCES))
        return text


class Setting(Reason):
    """One flag or variable. It is used where `when` holds, or where `unless` is not known to hold, for `from` <=
    version < `until`, and, if `asked` names an option, only when that was asked for."""

    value: str | None = None
    when: str | None = None
    unless: str | None = None
    from_: str | None = None
    until: str | None = None
    asked: str | None = None

    _conditions = field_validator("when", "unless")(_answerable)

    @field_validator("value")
    @classmethod
    def _value(cls, text: str | None) -> str | None:
        return text if text is None else _known_words(text)

    @property
    def name(self) -> str:
        raise NotImplementedError


class Flag(Setting):
    flag: str

    @property
    def name(self) -> str:
        return self.flag


class Variable(Setting):
    variable: str
    value: str

    @property
    def name(self) -> str:
        return self.variable


class Rule(Reason):
    """What must hold. If it does not, the recipe is refused, or only warned about; if it cannot be told, warned."""

    id: str
    when: str
    refuse: bool = False

    _condition = field_validator("when")(_answerable)

    @property
    def asks_host(self) -> bool:
        """Whether it rests on the doctor's rules, and not on the point alone."""
        return bool(parse_condition(self.when).names & CHECKS)


class Versions(Reason):
    """Of the engine: `from` <= version < `until`, and none of `not`."""

    from_: str | None = None
    until: str | None = None
    not_: tuple[str, ...] = ()

    @field_validator("not_", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class Package(Reason):
    """A Python package that the image lacks."""

    package: str


class Cache(Strict):
    """A named volume over a folder of the image that is slow to fill."""

    volume: str
    path: str


class Default(Strict):
    """The point a recipe is for, unless asked otherwise."""

    context: int
    concurrency: int
    tp: int = 1


class Recipe(Strict):
    """`model` is `*` for any model. `known` says who has run this, `constructed` that nobody is known to have.

    `checkpoint` is a hub id, or a path inside the container; `config` the hub id a plan is made from. `version` is the
    engine's in `image`, None where the image moves. `ready` answers 200 once the engine serves.
    """

    model: str
    host: Host
    engine: Engine
    title: str
    known: str
    checkpoint: str
    config: str | None = None
    served_name: str
    image: str
    version: str | None = None
    program: tuple[str, ...]
    ready: str = "/health"
    devices: bool = True
    patch_tokenizer: bool = False
    utilization: float = 0.9
    versions: Versions | None = None
    point: Default
    argv: tuple[Flag, ...] = ()
    environment: tuple[Variable, ...] = ()
    rule: tuple[Rule, ...] = ()
    package: tuple[Package, ...] = ()
    cache: tuple[Cache, ...] = ()
    file: str = Field(default="", exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """TOML has lists, a frozen recipe has tuples."""
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}

    @field_validator("program")
    @classmethod
    def _program(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known_words(word) for word in words)

    @field_validator("version")
    @classmethod
    def _version(cls, text: str | None) -> str | None:
        if text is not None:
            version(text)
        return text

    @property
    def name(self) -> str:
        return f"{self.model}/{self.host}/{self.engine}"

    @property
    def options(self) -> tuple[str, ...]:
        """What may be asked for on top."""
        asked = {setting.asked for setting in (*self.argv, *self.environment) if setting.asked}
        return tuple(sorted(asked))
