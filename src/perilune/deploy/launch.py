"""A recipe at a point on a host: the exact words and variables, and what each rests on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perilune.deploy.condition import Answer, Fact, Truth, parse_condition
from perilune.deploy.points import Point, names_of
from perilune.deploy.recipe import Recipe, Rule, Setting
from perilune.deploy.stale import refuse_stale
from perilune.deploy.version import Version, version, within
from perilune.errors import ConfigError, nearest
from perilune.host.rule import Check


@dataclass(frozen=True)
class Used:
    """A flag or variable as it is passed; `says` is what its condition rests on, if it has one."""

    name: str
    value: str | None
    why: str
    source: str
    says: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name,) if self.value is None else (self.name, self.value)


@dataclass(frozen=True)
class Left:
    """A flag or variable that is not passed, and why."""

    name: str
    value: str | None
    why: str


@dataclass(frozen=True)
class Verdict:
    rule: Rule
    answer: Answer

    @property
    def refuses(self) -> bool:
        return self.rule.refuse and self.answer.truth is Truth.NO


@dataclass(frozen=True)
class Asked:
    """What is wanted beyond the recipe: its options, own flags and variables, another checkpoint or version."""

    options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    variables: Mapping[str, str] | None = None
    checkpoint: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Launch:
    """What is to be started. `argv` is the whole command, `environment` what is set on top of the inherited one."""

    recipe: Recipe
    point: Point
    checkpoint: str
    program: tuple[str, ...]
    flags: tuple[Used, ...]
    variables: tuple[Used, ...]
    left: tuple[Left, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *(word for flag in self.flags for word in flag.words))

    @property
    def environment(self) -> dict[str, str]:
        return {variable.name: variable.value or "" for variable in self.variables}

    def check(self) -> Launch:
        """Itself. Raises ConfigError if a rule refuses, with its reason and what was found."""
        for verdict in self.verdicts:
            if verdict.refuses:
                raise ConfigError(
                    f"{self.recipe.name} is not for this: {verdict.answer.says}.",
                    f"{verdict.rule.why}.",
                    "`perilune doctor` has the fix." if verdict.rule.asks_host else "Choose another point.",
                )
        return self


def resolve(
    recipe: Recipe,
    point: Point,
    *,
    checks: Mapping[str, Check] | None = None,
    facts: Mapping[str, Fact] | None = None,
    asked: Asked | None = None,
    address: str = "0.0.0.0",  # noqa: S104 - inside a container; what is published, the port mapping says
) -> Launch:
    """`recipe` at `point` on the host that `checks`, or `facts` made of them, describe; else that is unknown.

    Raises ConfigError for an option the recipe does not have, a version it does not hold for, a stale flag or variable,
    and a recipe without a checkpoint if none is given.
    """
    asked = asked or Asked()
    for option in asked.options:
        if option not in recipe.options:
            hint = nearest(option, recipe.options) if recipe.options else "It has none."
            raise ConfigError(f"{recipe.name} has no option {option!r}.", "", hint)
    found = _version(recipe, asked.version)
    own = {word.partition("=")[0] for word in asked.flags if word.startswith("-")}
    refuse_stale((*own, *(asked.variables or {})), recipe, found)
    checkpoint = asked.checkpoint or recipe.checkpoint
    if not checkpoint:
        raise ConfigError(f"{recipe.name} is for any model.", "", "Say which: a folder, a file or a hub id.")
    names = names_of(point, checks or {}) | dict(facts or {})
    chooser = _Chooser(names, asked.options, found, _words(recipe, point, checkpoint, address))
    flags, left = chooser.choose(tuple(flag for flag in recipe.argv if flag.name not in own))
    given = {variable.variable for variable in recipe.environment} & set(asked.variables or {})
    variables, also = chooser.choose(tuple(v for v in recipe.environment if v.name not in given))
    flags += tuple(Used(word, None, "as given", "") for word in asked.flags)
    variables += tuple(Used(name, value, "as given", "") for name, value in (asked.variables or {}).items())
    program = tuple(word.format(**chooser.words) for word in recipe.program)
    verdicts = tuple(Verdict(rule, parse_condition(rule.when).ask(names)) for rule in recipe.rule)
    return Launch(recipe, point, checkpoint, program, flags, variables, (*left, *also), verdicts)


def variables_of(words: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE words. Raises ConfigError for another form."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{word!r} is not NAME=VALUE.")
        found[name] = value
    return found


def _words(recipe: Recipe, point: Point, checkpoint: str, address: str) -> dict[str, str | int]:
    return {
        "context": point.context,
        "concurrency": point.concurrency,
        "total_context": point.total_context,
        "tp": point.tp,
        "port": point.port,
        "checkpoint": checkpoint,
        "served_name": recipe.served_name,
        "address": address,
    }


def _version(recipe: Recipe, asked: str | None) -> Version | None:
    text = asked or recipe.version
    if text is None:
        return None
    found, limits = version(text), recipe.versions
    if limits is not None and (text in limits.not_ or not within(found, limits.from_, limits.until)):
        span = f"from {limits.from_ or 'the first'} to before {limits.until or 'none yet'}"
        but = f", but not {', '.join(limits.not_)}" if limits.not_ else ""
        raise ConfigError(f"{recipe.name} is not for {recipe.engine} {text}.", f"It is {span}{but}: {limits.why}.")
    return found


@dataclass(frozen=True)
class _Chooser:
    names: Mapping[str, Any]
    options: tuple[str, ...]
    version: Version | None
    words: Mapping[str, str | int]

    def choose(self, settings: tuple[Setting, ...]) -> tuple[tuple[Used, ...], tuple[Left, ...]]:
        used, left = [], []
        for setting in settings:
            value = None if setting.value is None else setting.value.format(**self.words)
            reasons = list(self._against(setting))
            if reasons:
                left.append(Left(setting.name, value, reasons[0]))
            else:
                used.append(Used(setting.name, value, setting.why, setting.source, self._says(setting)))
        return tuple(used), tuple(left)

    def _against(self, setting: Setting) -> Iterator[str]:
        if setting.asked is not None and setting.asked not in self.options:
            yield f"only with --with {setting.asked}; {setting.why}"
        if self.version is not None and not within(self.version, setting.from_, setting.until):
            yield f"from {setting.from_ or 'the first version'} to before {setting.until or 'none yet'}"
        if setting.when is not None:
            answer = parse_condition(setting.when).ask(self.names)
            if answer.truth is not Truth.YES:
                yield answer.says
        if setting.unless is not None:
            answer = parse_condition(setting.unless).ask(self.names)
            if answer.truth is Truth.YES:
                yield answer.says

    def _says(self, setting: Setting) -> str:
        condition = setting.when or setting.unless
        return "" if condition is None else parse_condition(condition).ask(self.names).says
