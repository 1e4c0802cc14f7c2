"""`perilune plan MODEL`: will it fit, before a byte of weights is loaded."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    model: Annotated[str, typer.Argument(help="A folder, a config.json, or a hub id (its weights are not fetched).")],
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence; 8192 or the model's limit.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences running at once.")] = 8,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    weight_bits: Annotated[
        str, typer.Option(help="8 rounds dense weights, but those of experts; auto is 16.")
    ] = "auto",
    memory: Annotated[str | None, typer.Option(help="Memory to plan for, like 64GiB; else what is available.")] = None,
    bandwidth: Annotated[str | None, typer.Option(help="Memory bandwidth per second, like 80GB: adds rates.")] = None,
    compute: Annotated[float | None, typer.Option(min=1, help="FLOP per second, like 2e12: adds rates.")] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Room for states of earlier prompts.",
        ),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print what a model needs in memory at a context and concurrency, what would fit, and why."""
    from rich.console import Console

    from perilune.host.memory import available_memory
    from perilune.models.hub import resolve_config_only
    from perilune.plan.folder import plan_folder
    from perilune.plan.table import render, to_json
    from perilune.units import parse_bytes

    size, source = available_memory() if memory is None else (parse_bytes(memory), "as given")
    planned = plan_folder(
        resolve_config_only(model),
        context=context,
        concurrency=concurrency,
        dtype=dtype,
        weight_bits=weight_bits,
        memory=size,
        memory_source=source,
        bandwidth=None if bandwidth is None else parse_bytes(bandwidth),
        compute=compute,
        prefix_cache=prefix_cache,
    )
    console = Console(highlight=False)
    if json:
        console.print_json(data=to_json(planned))
    else:
        console.print(render(planned))
