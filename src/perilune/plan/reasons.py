"""The words beside a plan's numbers. Imports no torch."""

from __future__ import annotations

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import PAGE_TOKENS, CacheGeometry, pages_for
from perilune.models.spec import ModelSpec
from perilune.units import format_bytes


def sequences(count: int) -> str:
    """`1 sequence`, `3 sequences`."""
    return "1 sequence" if count == 1 else f"{count} sequences"


def cache_reasons(geometry: CacheGeometry, cache: CachePlan, concurrency: int, context: int) -> dict[str, str]:
    """A reason for each number that describes the cache, by the Plan's field names."""
    page, slot = format_bytes(cache.page_bytes), format_bytes(cache.slot_bytes)
    tables = f"{concurrency} x {pages_for(context)} pages of {PAGE_TOKENS} tokens"
    return {
        "cache_bytes_per_token": _why_token(geometry),
        "state_bytes_per_sequence": _why_state(geometry),
        "pages": f"{tables}, {page} each" if geometry.latents else f"{tables}; no MLA layer, so they hold nothing",
        "slots": f"one of {slot} per running sequence" if geometry.states else "no KDA layer, so they hold nothing",
        "cache_bytes": "all pages, slots and snapshots; the engine allocates exactly this",
    }


def _why_token(geometry: CacheGeometry) -> str:
    if not geometry.latents:
        return "no MLA layer"
    widths = sorted({block.values for block in geometry.latents})
    width = " or ".join(str(w) for w in widths)
    return f"{len(geometry.latents)} MLA layers x {width} values x {geometry.value_bytes} bytes"


def _why_state(geometry: CacheGeometry) -> str:
    if not geometry.states:
        return "no KDA layer"
    state, conv = format_bytes(geometry.state_bytes), format_bytes(geometry.conv_bytes)
    padding = f", {geometry.padding_bytes} B alignment" if geometry.padding_bytes else ""
    return f"{len(geometry.states)} KDA layers: {state} state in fp32, {conv} convolution window{padding}"


def why_context(spec: ModelSpec, reach: int, concurrency: int) -> str:
    """What ends the largest context `reach`: the model, the memory, or no room at all."""
    if reach == spec.max_context:
        return f"the model's limit; the memory holds {sequences(concurrency)} of it"
    if reach == 0:
        return f"{sequences(concurrency)} of one page do not fit beside the weights"
    return f"whole pages for {sequences(concurrency)} in what the weights leave; the model allows {spec.max_context}"


def why_fits(need: int, memory: int, smallest: int, reach: int, crowd: int) -> str:
    """What remains free, or what is missing and which settings would fit. `smallest` is the need without any cache."""
    if need <= memory:
        return f"{format_bytes(memory - need)} remain free"
    short = f"{format_bytes(need - memory)} too little"
    if smallest > memory:
        return f"{short}; weights and workspace alone exceed it: use more memory, or a smaller or quantised checkpoint"
    ways = [f"{name} {value}" for name, value in (("context", reach), ("concurrency", crowd)) if value]
    return f"{short}; {' or '.join(ways)} would fit" if ways else f"{short}; lower both context and concurrency"
