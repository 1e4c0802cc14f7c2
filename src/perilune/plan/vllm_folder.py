"""From a model's folder or config.json to vLLM's plan, and that plan for people. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perilune.errors import ConfigError, nearest
from perilune.models.config import read_config
from perilune.plan.folder import DEFAULT_CONTEXT, count_weights
from perilune.plan.vllm import VllmPlan, plan_vllm
from perilune.units import format_bytes

ENGINES = ("perilune", "vllm")


def plan_folder_vllm(
    path: Path,
    *,
    memory: int,
    engine: str = "vllm",
    context: int | None = None,
    concurrency: int = 8,
    dtype: str = "auto",
    tp: int = 1,
    utilization: float = 0.9,
    prefix_cache: bool = True,
) -> VllmPlan:
    """Plan vLLM for the model at `path`. Raises ConfigError for another engine, else as `plan_folder`."""
    if engine != "vllm":
        raise ConfigError(f"There is no memory model of {engine!r}.", "", nearest(engine, ENGINES))
    files = read_config(path)
    kept = files.spec.dtype if dtype == "auto" else dtype
    [weights] = count_weights(path, files, kept, hold_embedding=True).held
    return plan_vllm(
        files.spec,
        context=min(files.spec.max_context, DEFAULT_CONTEXT) if context is None else context,
        concurrency=concurrency,
        weights_bytes=weights,
        memory=memory,
        tp=tp,
        utilization=utilization,
        dtype=kept,
        prefix_cache=prefix_cache,
    )


def render_vllm(plan: VllmPlan) -> RenderableType:
    """The verdict, then vLLM's numbers, each with its reason."""
    word, style = ("fits vLLM", "bold green") if plan.fits else ("does not fit vLLM", "bold red")
    need = plan.concurrency * plan.sequence_bytes
    verdict = Text.assemble(
        (word, style),
        f": {plan.concurrency} x {plan.context} tokens need {format_bytes(need)} of cache"
        f"{' on each GPU' if plan.tp > 1 else ''}, {format_bytes(plan.cache_bytes)} are left.",
    )
    rows = [
        ("block", f"{plan.block_tokens} tokens", "block_tokens"),
        ("state padded by", f"{plan.state_padding:.2%}", "state_padding"),
        ("padding layers", f"{plan.padding_layers}", "padding_layers"),
        ("may take", format_bytes(plan.budget_bytes), "budget_bytes"),
        ("weights", format_bytes(plan.weights_bytes), "weights_bytes"),
        ("workspace", format_bytes(plan.workspace_bytes), "workspace_bytes"),
        ("cache", format_bytes(plan.cache_bytes), "cache_bytes"),
        ("blocks a sequence", f"{plan.blocks_per_sequence} of {plan.blocks}", "blocks_per_sequence"),
        ("one sequence", format_bytes(plan.sequence_bytes), "sequence_bytes"),
        ("lost", format_bytes(plan.lost_bytes), "lost_bytes"),
        ("logged cache size", f"{plan.logged_tokens} tokens", "logged_tokens"),
        ("most sequences", f"{plan.max_concurrency:g}", "max_concurrency"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column(style="dim")
    for name, value, key in rows:
        table.add_row(name, value, plan.because[key])
    return Group(verdict, Text(), table)
