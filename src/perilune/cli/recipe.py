"""`perilune recipe ls|show|explain|diff`: how an engine is started for a model on a host, and why so."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Action(StrEnum):
    ls = "ls"
    show = "show"
    explain = "explain"
    diff = "diff"


def recipe(
    action: Annotated[Action, typer.Argument(help="List, print the command, give every reason, or compare two.")],
    name: Annotated[str | None, typer.Argument(help="model/host/engine, as `ls` prints it.")] = None,
    other: Annotated[str | None, typer.Argument(help="diff: the second recipe.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence; else the recipe's.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Sequences at once; else the recipe's.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="GPUs; else the recipe's.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    checkpoint: Annotated[str | None, typer.Option(help="Another checkpoint: a folder, a file or a hub id.")] = None,
    engine_version: Annotated[str | None, typer.Option(help="The engine's version, if not the image's.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--with", help="An option of the recipe, like aiter-off.")
    ] = None,
    sysroot: Annotated[Path | None, typer.Option(help="The host as recorded by `perilune doctor snapshot`.")] = None,
    json: Annotated[bool, typer.Option("--json", help="show: JSON for programs.")] = False,
) -> None:
    """Recipes are data: image, command, environment and rules, each line with a reason and a source."""
    from rich.console import Console

    from perilune.deploy.catalog import recipe as find
    from perilune.deploy.catalog import recipes
    from perilune.deploy.explain import command, differences, explanation, listing, to_json
    from perilune.deploy.hosts import examined
    from perilune.deploy.launch import Asked, Launch, resolve
    from perilune.deploy.points import point_of
    from perilune.errors import ConfigError

    console = Console(highlight=False)
    if action is Action.ls:
        console.print(listing(recipes()))
        return
    if name is None or (other is None) == (action is Action.diff):
        raise ConfigError(f"recipe {action} takes {'two names' if action is Action.diff else 'one name'}.")

    def launch(called: str) -> Launch:
        found = find(called)
        point = point_of(found, context=context, concurrency=concurrency, tp=tp, port=port)
        model = checkpoint or found.checkpoint or "MODEL"
        asked = Asked(tuple(options or ()), checkpoint=model, version=engine_version)
        return resolve(found, point, checks=examined(found.host, sysroot, tp=point.tp).checks, asked=asked)

    one = launch(name)
    if action is Action.diff:
        typer.echo("\n".join(differences(one, launch(other or ""))) or "they start the same")
    elif action is Action.explain:
        console.print(explanation(one))
    elif json:
        console.print_json(data=to_json(one))
    else:
        typer.echo(command(one))
