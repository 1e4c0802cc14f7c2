"""Recipe and point to argument list and environment, with the rules that held and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perilune.bench.plan.point import Fired, Part, Server, Topology
from perilune.bench.spec.recipe import Hardware, Recipe, Split
from perilune.deploy.catalog import recipe as deploy_recipe
from perilune.deploy.condition import Fact, parse_condition
from perilune.deploy.launch import Asked, resolve
from perilune.deploy.points import point_of
from perilune.deploy.stale import refuse_stale
from perilune.deploy.version import version
from perilune.errors import ConfigError, nearest

_PROGRAMS: dict[str, tuple[str, ...]] = {
    "perilune": ("perilune", "serve", "{model}"),
    "vllm": ("vllm", "serve", "{model}"),
    "sglang": ("python3", "-m", "sglang.launch_server", "--model-path", "{model}"),
    "atom": ("python3", "-m", "atom.entrypoints.openai_server", "--model", "{model}"),
}


@dataclass(frozen=True)
class _Drawn:
    """A recipe at a point: its flags and variables with what the rules that held, `fired`, and the point itself say."""

    recipe: Recipe
    hardware: Hardware
    names: Mapping[str, Any]
    flags: Mapping[str, Any]
    variables: Mapping[str, Any]
    fired: tuple[Fired, ...]


def server_of(
    recipe: Recipe, hardware: Hardware, names: Mapping[str, Any], argv: Mapping[str, Any], env: Mapping[str, Any]
) -> Server:
    """The server of a point: the recipe's flags, then its rules in order, then `argv` and `env`, the point's own axes.

    Raises ConfigError for a rule that cannot be decided and a template that names nothing.
    """
    flags, variables, fired = dict(recipe.argv), dict(recipe.env), list[Fired]()
    for rule in recipe.rules:
        if parse_condition(rule.when).holds(names):
            flags.update(rule.argv)
            variables.update(rule.env)
            fired.append(Fired(rule.when, rule.why, rule.argv, rule.env))
    flags.update(argv)
    variables.update(env)
    drawn = _Drawn(recipe, hardware, names, flags, variables, tuple(fired))
    if recipe.deploy is not None:
        return _deployed(recipe.deploy, drawn)
    assert recipe.model is not None, "the recipe's own check"
    if recipe.split is not None:
        return _split(recipe.split, drawn)
    program = recipe.command or list(_PROGRAMS[recipe.engine])
    with_model = {**names, "model": recipe.model}
    words = [filled(word, with_model) for word in program]
    for flag, value in flags.items():
        words += _flag(flag, value, with_model)
    return Server(
        engine=recipe.engine,
        model=recipe.model,
        image=recipe.image,
        argv=tuple(words),
        env=_environment(variables, with_model),
        fired=tuple(fired),
        topology=topology(names),
        hardware=hardware,
        port_flag=recipe.port_flag,
        ready_s=recipe.ready_s,
    )


def _split(split: Split, drawn: _Drawn) -> Server:
    """Engines of both roles with the recipe's flags, the rules' and the point's; then each role's own."""
    names, recipe, parts = drawn.names, drawn.recipe, list[Part]()
    for role, part in (("prefill", split.prefill), ("decode", split.decode)):
        own = {**names, "model": recipe.model, **({} if part.tp is None else {"tp": part.tp})}
        words = [filled(word, own) for word in _PROGRAMS["perilune"]] + ["--role", role]
        for flag, value in {**drawn.flags, **part.argv}.items():
            words += _flag(flag, value, own)
        env = _environment({**drawn.variables, **part.env}, own)
        parts += [Part(role, tuple(words), env, topology(own).gpus)] * part.count
    words = ["perilune", "route"]
    for flag, value in split.router.items():
        words += _flag(flag, value, names)
    return Server(
        engine=recipe.engine,
        model=recipe.model or "",
        image=recipe.image,
        argv=tuple(words),
        env={},
        fired=drawn.fired,
        topology=topology(names),
        hardware=drawn.hardware,
        ready_s=recipe.ready_s,
        parts=tuple(parts),
    )


def _environment(variables: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, str]:
    return {key: filled(_word(value), names) for key, value in sorted(variables.items()) if value is not None}


def _deployed(name: str, drawn: _Drawn) -> Server:
    """A recipe of `deploy` at this point; what the sweep says of a flag or variable takes the place of what it says.

    Raises ConfigError for a rule of the recipe that refuses, and for flags that its engine no longer has.
    """
    names, recipe, flags, variables, fired = drawn.names, drawn.recipe, drawn.flags, drawn.variables, list(drawn.fired)
    found = deploy_recipe(name)
    point = point_of(
        found, context=_whole(recipe.context, names), concurrency=_whole(recipe.concurrency, names), tp=names["tp"]
    )
    refuse_stale((f"--{flag}" for flag in flags), found, None if found.version is None else version(found.version))
    asked = Asked(tuple(recipe.options), checkpoint=recipe.model)
    facts = {key: value for key, value in names.items() if isinstance(value, Fact)}
    launch = resolve(found, point, facts=facts, asked=asked, address="127.0.0.1").check()
    own = {flag if flag.startswith("-") else f"--{flag}" for flag in flags}
    words = list(launch.program)
    for used in launch.flags:
        if used.name != "--port" and used.name not in own:
            words += used.words
        if used.says:
            fired.append(Fired(used.says, used.why, {used.name.lstrip("-"): used.value}, {}))
    for flag, value in flags.items():
        words += _flag(flag, value, names)
    env = launch.environment | {k: filled(_word(v), names) for k, v in variables.items() if v is not None}
    return Server(
        engine=found.engine,
        model=launch.checkpoint,
        image=found.image,
        argv=tuple(words),
        env=dict(sorted((k, v) for k, v in env.items() if variables.get(k, v) is not None)),
        fired=tuple(fired),
        topology=topology(names),
        hardware=drawn.hardware,
        ready_s=recipe.ready_s,
    )  # fmt: skip


def _whole(value: Any, names: Mapping[str, Any]) -> int | None:
    text = None if value is None else filled(_word(value), names)
    if text is not None and not text.isdigit():
        raise ConfigError(f"{text!r} is no number of tokens or sequences.", "", "Write a whole number, or {conc}.")
    return None if text is None else int(text)


def topology(names: Mapping[str, Any]) -> Topology:
    """Raises ConfigError unless each degree is a whole number from 1."""
    for key in Topology.__dataclass_fields__:
        value = names[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} is {value!r}.", "A degree of parallelism is a whole number from 1.")
    if names["tp"] % names["dcp"]:
        raise ConfigError(f"dcp {names['dcp']} does not divide tp {names['tp']}.", "It shares tp's GPUs.")
    return Topology(**{key: names[key] for key in Topology.__dataclass_fields__})


def filled(text: str, names: Mapping[str, Any]) -> str:
    """`text` with each `{name}` replaced. `{{` and `}}` stand for braces, as in JSON arguments."""

    def replace(match: re.Match[str]) -> str:
        if match.group() in ("{{", "}}"):
            return match.group()[0]
        name = match.group(1)
        if name not in names:
            raise ConfigError(f"{text!r} names {name!r}, which no point has.", fix=nearest(name, names))
        return _word(names[name])

    return re.sub(r"\{\{|\}\}|\{([A-Za-z_][\w]*)\}", replace, text)


def _flag(flag: str, value: Any, names: Mapping[str, Any]) -> list[str]:
    if value is None or value is False:
        return []
    name = flag if flag.startswith("-") else f"--{flag}"
    if value is True:
        return [name]
    return [name, *(filled(_word(item), names) for item in (value if isinstance(value, list) else [value]))]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
