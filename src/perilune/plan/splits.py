"""What ranks and roles do to the bytes: a model shared by tensor or expert parallelism, a prompt handed to a decoder.

Bytes on the wire are what the method moves, whatever carries it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perilune.cache.geometry import CacheGeometry
from perilune.errors import PeriluneError
from perilune.models.spec import DTYPE_BYTES, ModelSpec
from perilune.plan.plan import Plan
from perilune.units import format_bytes

DEGREES = (1, 2, 4, 8)
LINKS: tuple[tuple[str, float], ...] = (
    ("2.5 Gb/s Ethernet", 0.287e9),
    ("Thunderbolt networking", 1.12e9),
    ("25 Gb/s", 2.8e9),
    ("100 Gb/s", 11.2e9),
    ("400 Gb/s", 45e9),
)
"""Goodput in bytes/s: what such links carried in public reports and measurements, not their name."""


@dataclass(frozen=True)
class Split:
    """`tp` ranks, experts whole on each if `ep`. `plan` is that of the rank which holds most.

    `sent_per_token` is what one rank sends for one decoded token.
    """

    tp: int
    ep: bool
    plan: Plan
    sent_per_token: int


@dataclass(frozen=True)
class Handover:
    """One request of `tokens` prompt tokens, from a prefill engine to `decode_tp` decode ranks, in bytes.

    Every decode rank reads all latents, since each of its heads reads whole ones; states are shared by heads.
    """

    tokens: int
    decode_tp: int
    latent_bytes: int
    state_bytes: int

    @property
    def wire_bytes(self) -> int:
        return self.latent_bytes + self.state_bytes

    def seconds(self, link: float) -> float:
        """At `link` bytes/s; with the latents sent while prefill goes on, only the state's share is waited for."""
        return self.wire_bytes / link


def splits(spec: ModelSpec, plan_of: Callable[[int, bool], Plan]) -> tuple[list[Split], list[str]]:
    """Every degree the model can be shared by, and for each that it cannot why not."""
    found, refused = [], []
    for tp, ep in ((1, False), *((tp, ep) for tp in DEGREES[1:] for ep in (False, True) if _can(spec, ep))):
        try:
            plan = plan_of(tp, ep)
        except PeriluneError as error:
            refused.append(f"{tp} ranks{' with whole experts' if ep else ''}: {error.what}")
            continue
        found.append(Split(tp, ep, plan, sent_per_token(spec, plan.dtype, tp)))
    return found, refused


def _can(spec: ModelSpec, ep: bool) -> bool:
    return not ep or any(hasattr(layer.ffn, "experts") for layer in spec.layers)


def sent_per_token(spec: ModelSpec, dtype: str, tp: int) -> int:
    """Bytes one rank sends for one decoded token: two sums of `hidden` values a layer, and its part of the logits.

    A ring sums n parts by each rank sending 2 (n - 1) / n of them. With whole experts the same: every rank has every
    token, and what is summed is the output of the experts it holds.
    """
    if tp == 1:
        return 0
    sums = 2 * len(spec.layers) * spec.hidden * DTYPE_BYTES[dtype]
    return sums * 2 * (tp - 1) // tp + spec.vocab // tp * DTYPE_BYTES["float32"]


def handovers(spec: ModelSpec, dtype: str, tokens: int) -> list[Handover]:
    """To 1, 2, 4 and 8 decode ranks, as far as they can share the heads. How many ranks prefill changes nothing."""
    whole = CacheGeometry.of(spec, dtype)
    found = []
    for tp in DEGREES:
        try:
            CacheGeometry.of(spec, dtype, tp)
        except PeriluneError:
            continue
        state = whole.state_bytes + whole.conv_bytes
        found.append(Handover(tokens, tp, tokens * whole.bytes_per_token * tp, state))
    return found


def to_json(shared: list[Split], handed: list[Handover]) -> dict[str, Any]:
    """For programs: one object per split and per handover."""
    return {
        "splits": [
            {
                "tp": s.tp, "ep": s.ep, "weights_bytes": s.plan.weights_bytes, "cache_bytes": s.plan.cache_bytes,
                "cache_bytes_per_token": s.plan.cache_bytes_per_token, "slot_bytes": s.plan.slot_bytes,
                "total_bytes": s.plan.total_bytes, "fits": s.plan.fits, "max_context": s.plan.max_context,
                "sent_per_token": s.sent_per_token,
            }
            for s in shared
        ],
        "handovers": [
            {"tokens": h.tokens, "decode_tp": h.decode_tp, "latent_bytes": h.latent_bytes,
             "state_bytes": h.state_bytes, "wire_bytes": h.wire_bytes,
             "seconds": {name: round(h.seconds(link), 4) for name, link in LINKS}}
            for h in handed
        ],
    }  # fmt: skip


def render(shared: list[Split], refused: list[str], handed: list[Handover]) -> RenderableType:
    """Two tables: what each rank holds and sends, and what a handover moves."""
    return Group(*_parts(shared, refused, handed))


def _parts(shared: list[Split], refused: list[str], handed: list[Handover]) -> Iterator[RenderableType]:
    ranks = _table("ranks", "weights", "a token", "a state", "in all", "reaches", "sent per token")
    for split in shared:
        plan = split.plan
        ranks.add_row(
            f"{split.tp} ep" if split.ep else f"{split.tp}", format_bytes(plan.weights_bytes),
            f"{plan.cache_bytes_per_token} B", format_bytes(plan.slot_bytes),
            Text(format_bytes(plan.total_bytes), "bold green" if plan.fits else "bold red"), f"{plan.max_context}",
            format_bytes(split.sent_per_token),
        )  # fmt: skip
    memory = format_bytes(shared[0].plan.memory_bytes)
    yield Text(
        f"On the rank that holds most, of {memory} for each; ep: whole experts. Latents are on every rank.", "dim"
    )
    yield ranks
    yield from (Text(line, "dim") for line in refused)
    wire = _table("decode ranks", *(f"{hand.decode_tp}" for hand in handed))
    for name, size in (("latents", "latent_bytes"), ("states", "state_bytes"), ("on the wire", "wire_bytes")):
        wire.add_row(name, *(format_bytes(getattr(hand, size)) for hand in handed))
    for name, link in LINKS:
        wire.add_row(name, *(f"{hand.seconds(link):.3g} s" for hand in handed))
    yield Text()
    yield Text(f"A prompt of {handed[0].tokens} tokens, prefilled elsewhere: what decode engines read.", "dim")
    yield wire


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
