"""`perilune deploy TARGET MODEL --out DIR`: a folder that runs a model with an engine on a host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def deploy(
    target: Annotated[str, typer.Argument(help="strix-halo, mi300x, mi355x or cpu.")],
    model: Annotated[str, typer.Argument(help="A recipe's model or its checkpoint; `perilune recipe ls`.")],
    out: Annotated[Path, typer.Option(help="The folder to write.", file_okay=False)],
    engine: Annotated[str, typer.Option(help="perilune, vllm or llama.cpp.")] = "vllm",
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence; else the recipe's.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Sequences at once; else the recipe's.")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="GPUs; else the recipe's.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    options: Annotated[
        list[str] | None, typer.Option("--with", help="An option of the recipe, like aiter-off.")
    ] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(help="One more word for the engine; repeat.")] = None,
    engine_env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the engine; repeat.")] = None,
    engine_version: Annotated[str | None, typer.Option(help="The engine's version, if not the image's.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The model's folder or config.json, to plan without the hub.")
    ] = None,
    sysroot: Annotated[Path | None, typer.Option(help="The host as recorded by `perilune doctor snapshot`.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over files; deploy what a rule or the plan refuses.")
    ] = False,
) -> None:
    """Write compose, Quadlet and Kubernetes files, a smoke test and a README with what the host still needs."""
    from perilune.deploy.catalog import find
    from perilune.deploy.condition import Truth
    from perilune.deploy.files import deployment, write
    from perilune.deploy.hosts import examined
    from perilune.deploy.launch import Asked, resolve, variables_of
    from perilune.deploy.plans import planned
    from perilune.deploy.points import point_of
    from perilune.errors import ConfigError

    found = find(model, target, engine)
    point = point_of(found, context=context, concurrency=concurrency, tp=tp, port=port)
    own = model if found.model == "*" else None
    asked = Asked(tuple(options or ()), tuple(engine_arg or ()), variables_of(engine_env or ()), own, engine_version)
    plan = planned(resolve(found, point, asked=asked), config)
    if plan.fits is Truth.NO and not force:
        raise ConfigError(
            f"{found.name} does not fit.", f"{plan.says}.", "Lower --context or --concurrency, or --force."
        )
    host = examined(target, sysroot, need=plan.need, tp=point.tp)
    launch = resolve(found, point, checks=host.checks, asked=asked)
    if not force:
        launch.check()
    for path in write(deployment(launch, host, f"{plan.says}."), out, force=force):
        typer.echo(path)
