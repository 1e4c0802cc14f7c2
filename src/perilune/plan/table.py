"""A Plan for people and for programs. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perilune.plan.plan import Plan
from perilune.units import format_bytes


def to_json(plan: Plan) -> dict[str, Any]:
    """Every field of the plan under its own name, ready for json.dumps; `roofline` is nested."""
    return dataclasses.asdict(plan)


def render(plan: Plan) -> RenderableType:
    """The verdict first, then what takes memory from the largest to the smallest, then what would fit and how fast."""
    return Group(_verdict(plan), Text(), _memory(plan), Text(), _facts(plan))


def _verdict(plan: Plan) -> Text:
    word, style = ("fits", "bold green") if plan.fits else ("does not fit", "bold red")
    total, memory = format_bytes(plan.total_bytes), format_bytes(plan.memory_bytes)
    asked = f"{plan.concurrency} x {plan.context} tokens" + (f" on each of {plan.tp} ranks" if plan.tp > 1 else "")
    alone = plan.alone.expected_decode if plan.fits else None
    return Text.assemble(
        (f"{plan.architecture} {word}", style),
        f": {asked} need {total} of {memory}; {plan.because['fits']}.",
        f" One sequence decodes {_span(alone)} while its context is short." if alone else "",
    )


def _span(rates: tuple[float, float]) -> str:
    return f"{rates[0]:.2g} to {rates[1]:.2g} tok/s"


def _table() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="bold")
    table.add_column(style="dim")
    return table


def _memory(plan: Plan) -> Table:
    parts = [
        ("weights", plan.weights_bytes, "weights_bytes"),
        (f"{plan.pages} pages", plan.pages * plan.page_bytes, "pages"),
        (f"{plan.slots} slots", plan.slots * plan.slot_bytes, "slots"),
        (f"{plan.snapshot_slots} snapshots", plan.snapshot_slots * plan.slot_bytes, "snapshot_slots"),
        ("workspace", plan.workspace_bytes, "workspace_bytes"),
    ]
    if not plan.snapshot_slots:
        parts = [part for part in parts if part[2] != "snapshot_slots"]
    table = _table()
    for name, size, key in sorted(parts, key=lambda part: -part[1]):
        table.add_row(name, format_bytes(size), plan.because[key])
    table.add_row("total", format_bytes(plan.total_bytes), plan.because["total_bytes"])
    table.add_row("memory", format_bytes(plan.memory_bytes), plan.because["memory_bytes"])
    if plan.file_bytes:
        table.add_row("not held", format_bytes(plan.file_bytes), plan.because["file_bytes"])
    return table


def _facts(plan: Plan) -> Table:
    speed = plan.roofline
    rows = [
        ("parameters", _count(plan.parameters_total), plan.because["parameters_total"]),
        ("active per token", _count(plan.parameters_active), plan.because["parameters_active"]),
        ("dtype", plan.dtype, plan.because["dtype"]),
        ("cache per token", f"{plan.cache_bytes_per_token} B", plan.because["cache_bytes_per_token"]),
        ("state per sequence", format_bytes(plan.state_bytes_per_sequence), plan.because["state_bytes_per_sequence"]),
        ("largest context", f"{plan.max_context}", plan.because["max_context"]),
        ("most sequences", f"{plan.max_concurrency}", plan.because["max_concurrency"]),
        ("read per token", format_bytes(speed.read_bytes_per_token), _traffic(plan)),
    ]
    if plan.kda_layers:
        rows.append(("snapshots that fit", f"{plan.max_snapshots}", plan.because["max_snapshots"]))
    for name, tokens, key in (
        ("snapshot, in latents", plan.snapshot_break_even_tokens, "snapshot_break_even_tokens"),
        ("snapshot, in prefill", plan.snapshot_copy_tokens, "snapshot_copy_tokens"),
    ):
        if tokens is not None:
            rows.append((name, f"{tokens} tokens" if tokens > 1 else "1 token", plan.because[key]))
    alone = plan.alone
    for name, rate, expected, key, because in (
        ("one, empty", alone.decode_tokens_per_second, alone.expected_decode, "decode", alone.because),
        ("decode", speed.decode_tokens_per_second, speed.expected_decode, "decode", speed.because),
        ("prefill", speed.prefill_tokens_per_second, speed.expected_prefill, "prefill", speed.because),
    ):
        if rate is not None:
            rows.append((f"{name}, at most", f"{rate:.3g} tok/s", because[f"{key}_tokens_per_second"]))
        if expected is not None:
            rows.append((f"{name}, likely", _span(expected), because[f"expected_{key}"]))
    table = _table()
    for row in rows:
        table.add_row(*row)
    return table


def _traffic(plan: Plan) -> str:
    speed = plan.roofline
    weights = format_bytes(speed.weight_bytes_per_step / speed.concurrency)
    state, cache = format_bytes(speed.state_bytes_per_token), format_bytes(speed.cache_bytes_per_token)
    return f"decoding {speed.concurrency} at {speed.depth} tokens: {weights} weights, {state} state, {cache} cache"


def _count(parameters: int) -> str:
    """`49122681728` -> `49.12 billion`; never a B, which is a byte here."""
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if parameters >= size:
            return f"{parameters / size:,.2f} {unit}"
    return f"{parameters:,}"
