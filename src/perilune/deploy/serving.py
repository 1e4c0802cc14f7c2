"""`perilune serve --engine NAME`: plan first, then the recipe's exact command, then the engine until it is stopped."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from perilune.deploy.catalog import find
from perilune.deploy.child import Watch, run
from perilune.deploy.condition import Truth
from perilune.deploy.explain import command
from perilune.deploy.hosts import examined
from perilune.deploy.launch import Asked, Launch, resolve
from perilune.deploy.plans import planned
from perilune.deploy.points import point_of
from perilune.deploy.recipe import Engine
from perilune.errors import ConfigError, nearest
from perilune.host.doctor import choose_target
from perilune.host.live import Live
from perilune.host.sysroot import Sysroot

Say = Callable[[str], None]


_OTHERS = {
    "target",
    "options",
    "engine_arg",
    "engine_env",
    "engine_program",
    "engine_log",
    "ready_seconds",
    "force",
}
_BOTH = {"model", "engine", "host", "port", "served_model_name", "max_context", "max_running", "drain_seconds", "tp"}


def refuse_foreign(engine: str, given: list[str]) -> None:
    """Raises ConfigError for a flag that the engine would not get: none is dropped without a word."""
    engines = get_args(Engine)
    if engine not in engines:
        raise ConfigError(f"There is no engine {engine!r}.", "", nearest(engine, set(engines)))
    for name in given:
        flag = "--with" if name == "options" else f"--{name.replace('_', '-')}"
        if engine == "perilune" and name in _OTHERS:
            raise ConfigError(f"{flag} is for other engines.", "", "Say --engine vllm or llama.cpp, or leave it out.")
        if engine != "perilune" and name not in _OTHERS | _BOTH:
            raise ConfigError(f"{flag} is perilune's own.", f"{engine} would not get it.", "Use --engine-arg.")


@dataclass(frozen=True)
class Serving:
    """What `serve` was asked for; None is the recipe's own. `target` None is what this machine looks like.

    `program` stands in for the recipe's program, up to where the model is named. `force` starts what plan or rules
    refuse.
    """

    model: str
    engine: str
    target: str | None = None
    address: str = "127.0.0.1"
    port: int = 8000
    context: int | None = None
    concurrency: int | None = None
    tp: int | None = None
    served_name: str | None = None
    program: str | None = None
    config: Path | None = None
    asked: Asked = field(default_factory=Asked)
    force: bool = False


def serve(wanted: Serving, watch: Watch, say: Say = print) -> int:
    """The exit status. Raises ConfigError for what plan or rules refuse, EngineFailedError as `child.run`."""
    target = wanted.target or str(choose_target(Sysroot(Live()))[0])
    recipe = find(wanted.model, target, wanted.engine)
    if wanted.served_name:
        recipe = recipe.model_copy(update={"served_name": wanted.served_name})
    if wanted.program:
        recipe = recipe.model_copy(update={"program": _replaced(recipe.program, wanted.program)})
    point = point_of(recipe, context=wanted.context, concurrency=wanted.concurrency, tp=wanted.tp, port=wanted.port)
    own = wanted.model if wanted.model != recipe.model else None
    asked = dataclasses.replace(wanted.asked, checkpoint=wanted.asked.checkpoint or own)
    draft = resolve(recipe, point, asked=asked, address=wanted.address)
    plan = planned(draft, wanted.config)
    say(f"  plan: {plan.says}")
    if plan.fits is Truth.NO and not wanted.force:
        raise ConfigError(f"{wanted.model} does not fit.", f"{plan.says}.", "Lower --max-context or --max-running.")
    host = examined(target, need=plan.need, tp=point.tp)
    launch = resolve(recipe, point, checks=host.checks, asked=asked, address=wanted.address)
    _say_rules(launch, say)
    if not wanted.force:
        launch.check()
    say(f"  {command(launch)}")
    say(f"  log: {watch.log}")
    return run(launch, watch, address=wanted.address, say=say)


def _replaced(program: tuple[str, ...], other: str) -> tuple[str, ...]:
    """`other` for the executable, and for `-m NAME` right behind it; a subcommand and what names the model stay."""
    kept = 3 if program[1:2] == ("-m",) else 1
    return (*(word.replace("{", "{{").replace("}", "}}") for word in shlex.split(other)), *program[kept:])


def _say_rules(launch: Launch, say: Say) -> None:
    for verdict in launch.verdicts:
        if verdict.answer.truth is not Truth.YES:
            say(f"  {verdict.rule.id}: {verdict.answer.truth}, {verdict.answer.says}; {verdict.rule.why}")
