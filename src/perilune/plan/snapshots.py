"""What keeping a state costs and when it pays: the prefix cache of a hybrid model, priced. Imports no torch."""

from __future__ import annotations

import math

from perilune.cache.budget import SNAPSHOTS_PER_SLOT, CachePlan
from perilune.cache.geometry import CacheGeometry
from perilune.plan.roofline import Roofline
from perilune.units import format_bytes


def break_even_tokens(geometry: CacheGeometry) -> int | None:
    """The prompt whose latents take as many bytes as one snapshot; None if there is no state, or no latent."""
    if not geometry.states or not geometry.bytes_per_token:
        return None
    return math.ceil(geometry.slot_bytes / geometry.bytes_per_token)


def copy_tokens(geometry: CacheGeometry, speed: Roofline, bandwidth: float | None) -> int | None:
    """The prompt that is computed in the time one snapshot is read and written once; None where a rate is not known."""
    if not geometry.states or not bandwidth or not speed.prefill_tokens_per_second:
        return None
    return math.ceil(2 * geometry.slot_bytes / bandwidth * speed.prefill_tokens_per_second)


def snapshot_reasons(geometry: CacheGeometry, cache: CachePlan, speed: Roofline) -> dict[str, str]:
    """A reason per number, by the Plan's field names."""
    if not geometry.states:
        none = "no KDA layer: every cached page can be reused without a state"
        return {"snapshot_slots": none, "max_snapshots": none, "snapshot_break_even_tokens": none}
    slot = format_bytes(cache.slot_bytes)
    kept = f"{SNAPSHOTS_PER_SLOT} of {slot} per running sequence" if cache.snapshots else "the prefix cache is off"
    latents = f"{slot} over {geometry.bytes_per_token} B" if geometry.latents else "no latent to compare with"
    reasons = {
        "snapshot_slots": f"{kept}; a state serves every prompt with the same beginning",
        "max_snapshots": "these and what the memory leaves over",
        "snapshot_break_even_tokens": f"{latents}: longer prompts take more in latents than in their state",
    }
    if speed.prefill_tokens_per_second is not None:
        reasons["snapshot_copy_tokens"] = "computed while one state is copied; a longer beginning is worth reusing"
    return reasons
