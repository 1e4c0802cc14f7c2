"""`perilune plan MODEL`: will it fit, before a byte of weights is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from perilune.plan.device import Machine


def plan(
    model: Annotated[str, typer.Argument(help="A folder, a config.json, or a hub id (its weights are not fetched).")],
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence; 8192 or the model's limit.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences running at once.")] = 8,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    device: Annotated[
        str | None,
        typer.Option(
            help="Plan for strix-halo, mi300x, mi355x, h200 or cpu; host: this one, as the doctor reads it; or as "
            "`serve` says it, auto or cuda: the GPU of this one."
        ),
    ] = None,
    sysroot: Annotated[
        Path | None, typer.Option(help="--device host: the host that `perilune doctor snapshot` recorded.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw memory over context to this .svg.", dir_okay=False)] = None,
    weight_bits: Annotated[
        str, typer.Option(help="8 rounds dense weights, but those of experts; auto is 16.")
    ] = "auto",
    hold_embedding: Annotated[
        bool, typer.Option("--hold-embedding", help="On a CPU: keep the embedding in memory too, for a slow disk.")
    ] = False,
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
    engine: Annotated[str, typer.Option(help="perilune, or vllm: its pages, and what is lost by them.")] = "perilune",
    tp: Annotated[
        int,
        typer.Option("--tp", "--tensor-parallel-size", min=1, help="Ranks: GPUs with --memory each; CPUs share it."),
    ] = 1,
    ep: Annotated[bool, typer.Option("--ep", help="With --tp: experts are shared whole.")] = False,
    show_splits: Annotated[
        bool,
        typer.Option("--splits", help="Also 1 to 8 ranks, whole experts, and a prompt handed to a decode engine."),
    ] = False,
    utilization: Annotated[
        float, typer.Option("--gpu-memory-utilization", help="vllm: the share of the memory it may take.")
    ] = 0.9,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print what a model needs in memory at a context and concurrency, what would fit, and why."""
    import dataclasses

    from rich.console import Console, Group

    from perilune.errors import ConfigError
    from perilune.models.config import read_config
    from perilune.models.hub import resolve_config_only
    from perilune.plan.curves import CONCURRENCIES, curves, picture
    from perilune.plan.folder import plan_folder
    from perilune.plan.plan import Plan
    from perilune.plan.splits import handovers, splits
    from perilune.plan.splits import render as render_splits
    from perilune.plan.splits import to_json as splits_to_json
    from perilune.plan.table import render, to_json
    from perilune.plan.vllm_folder import plan_folder_vllm, render_vllm
    from perilune.units import parse_bytes

    if sysroot is not None and device != "host":
        raise ConfigError("--sysroot is a recorded host.", "", "Say --device host with it.")
    machine = _machine(device, sysroot, None if memory is None else (parse_bytes(memory), "as given"))
    machine = dataclasses.replace(
        machine,
        bandwidth=machine.bandwidth if bandwidth is None else parse_bytes(bandwidth),
        compute=machine.compute if compute is None else compute,
    )
    path = resolve_config_only(model)
    console = Console(highlight=False)
    if engine != "perilune":
        if plot is not None:
            raise ConfigError("--plot draws perilune's own plan.", "", "Leave out --engine.")
        theirs = plan_folder_vllm(
            path,
            engine=engine,
            context=context,
            concurrency=concurrency,
            dtype=dtype,
            memory=machine.memory,
            tp=tp,
            utilization=utilization,
            prefix_cache=prefix_cache,
        )
        console.print_json(data=dataclasses.asdict(theirs)) if json else console.print(render_vllm(theirs))
        return

    def plan_at(context: int | None, concurrency: int, tp: int = tp, ep: bool = ep) -> Plan:
        return plan_folder(
            path,
            machine,
            context=context,
            concurrency=concurrency,
            dtype=dtype,
            weight_bits=weight_bits,
            hold_embedding=hold_embedding,
            prefix_cache=prefix_cache,
            tp=tp,
            ep=ep,
        )

    planned = plan_at(context, concurrency)
    if plot is not None:
        drawn = curves(plan_at, read_config(path).spec.max_context, {*CONCURRENCIES, concurrency})
        plot.write_text(picture(model, planned, drawn))
    data = to_json(planned)
    if not json:
        console.print(render(planned))
    if show_splits:
        spec = read_config(path).spec
        shared, refused = splits(spec, lambda tp, ep: plan_at(context, concurrency, tp, ep))
        handed = handovers(spec, planned.dtype, planned.context)
        data |= splits_to_json(shared, handed)
        if not json:
            console.print(Group("", render_splits(shared, refused, handed)))
    if json:
        console.print_json(data=data)


def _machine(device: str | None, sysroot: Path | None, memory: tuple[int, str] | None) -> Machine:
    """The device that is named, the host the doctor reads, or this machine's memory with no rates."""
    from contextlib import ExitStack

    from perilune.errors import ConfigError
    from perilune.host.doctored import doctored
    from perilune.host.live import Live
    from perilune.host.memory import available_memory
    from perilune.host.profiles import profile
    from perilune.host.rule import Target
    from perilune.host.snapshot import opened
    from perilune.host.sysroot import Recorded, Source, Sysroot
    from perilune.plan.device import Machine, machine_of

    if device is None:
        return Machine(*(memory or available_memory()))
    ours = device in ("host", "auto") or device.partition(":")[0] == "cuda"
    if not ours:
        named = profile(device)
        return machine_of(named, memory or (available_memory() if named.memory is None else None))
    with ExitStack() as stack:
        source: Source = Live() if sysroot is None else Recorded(stack.enter_context(opened(sysroot)))
        found = doctored(Sysroot(source), live=sysroot is None)
    if device not in ("host", "auto") and found.profile.target is Target.CPU:
        raise ConfigError(
            f"The doctor finds no GPU here to plan --device {device} for.",
            "",
            "Run `perilune doctor`, or name a machine: --device strix-halo.",
        )
    return machine_of(found.profile, memory or (found.memory, found.says))
