"""`perilune plan MODEL`: will it fit, before a byte of weights is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    model: Annotated[str, typer.Argument(help="A folder, a config.json, or a hub id (its weights are not fetched).")],
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence; 8192 or the model's limit.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences running at once.")] = 8,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="Plan for strix-halo, mi300x, mi355x, h200 or cpu, not for this machine.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw memory over context to this .svg.", dir_okay=False)] = None,
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
    from perilune.host.profiles import profile
    from perilune.models.config import read_config
    from perilune.models.hub import resolve_config_only
    from perilune.plan.curves import CONCURRENCIES, curves, picture
    from perilune.plan.device import Machine, machine_of
    from perilune.plan.folder import plan_folder
    from perilune.plan.plan import Plan
    from perilune.plan.table import render, to_json
    from perilune.units import parse_bytes

    machine = Machine(None, "", None, None) if device is None else machine_of(profile(device))
    if memory is not None:
        size, source = parse_bytes(memory), "as given"
    else:
        size, source = (machine.memory, machine.source) if machine.memory is not None else available_memory()
    path = resolve_config_only(model)

    def plan_at(context: int | None, concurrency: int) -> Plan:
        return plan_folder(
            path,
            context=context,
            concurrency=concurrency,
            dtype=dtype,
            weight_bits=weight_bits,
            memory=size,
            memory_source=source,
            bandwidth=machine.bandwidth if bandwidth is None else parse_bytes(bandwidth),
            compute=machine.compute if compute is None else compute,
            prefix_cache=prefix_cache,
        )

    planned = plan_at(context, concurrency)
    if plot is not None:
        drawn = curves(plan_at, read_config(path).spec.max_context, {*CONCURRENCIES, concurrency})
        plot.write_text(picture(model, planned, drawn))
    console = Console(highlight=False)
    if json:
        console.print_json(data=to_json(planned))
    else:
        console.print(render(planned))
