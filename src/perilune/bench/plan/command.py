"""Recipe and point to argument list and environment, with the rules that held and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from perilune.bench.plan.point import Fired, Server, Topology
from perilune.bench.spec.recipe import Hardware, Recipe
from perilune.deploy.condition import parse_condition
from perilune.errors import ConfigError, nearest

_PROGRAMS: dict[str, tuple[str, ...]] = {
    "perilune": ("perilune", "serve", "{model}"),
    "vllm": ("vllm", "serve", "{model}"),
    "sglang": ("python3", "-m", "sglang.launch_server", "--model-path", "{model}"),
    "atom": ("python3", "-m", "atom.entrypoints.openai_server", "--model", "{model}"),
}


def server_of(
    recipe: Recipe, hardware: Hardware, names: Mapping[str, Any], argv: Mapping[str, Any], env: Mapping[str, Any]
) -> Server:
    """The server of a point: the recipe's flags, then its rules in order, then `argv` and `env`, the point's own axes.

    Raises ConfigError for a rule that cannot be decided and a template that names nothing.
    """
    flags, variables, fired = dict(recipe.argv), dict(recipe.env), []
    for rule in recipe.rules:
        if parse_condition(rule.when).holds(names):
            flags.update(rule.argv)
            variables.update(rule.env)
            fired.append(Fired(rule.when, rule.why, rule.argv, rule.env))
    flags.update(argv)
    variables.update(env)
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
        env={key: filled(_word(value), with_model) for key, value in sorted(variables.items()) if value is not None},
        fired=tuple(fired),
        topology=topology(names),
        hardware=hardware,
        port_flag=recipe.port_flag,
        ready_s=recipe.ready_s,
    )


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
