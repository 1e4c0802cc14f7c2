"""Where every byte of one rank's cache lies, declared so that another engine can check it and address it.

A region is one kind of memory of one layer. Regions of two engines belong together by (kind, layer), never by
position, and nothing about them is inferred. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import PAGE_TOKENS, STATE_DTYPE, CacheGeometry
from perilune.models.spec import DTYPE_BYTES
from perilune.units import format_bytes

LAYOUT_VERSION = 1
STATE_CHUNK = 64  # KDA prefill sums over chunks of this many tokens: another chunk, other last bits
Kind = Literal["mla_latent", "kda_state", "kda_conv"]
PoolName = Literal["pages", "slots"]
POOLS: tuple[PoolName, ...] = ("pages", "slots")
Key = tuple[Kind, int]


class Region(msgspec.Struct, frozen=True):
    """One kind of one layer's memory on one rank.

    A pool is `count` places (pages or slots) `stride` bytes apart; the region begins `offset` bytes into each.

    A latent region (`pages`) holds `tokens` items of `item_bytes` per place. A state region (`slots`) holds
    `[planes][heads][item_bytes]`, heads `head_start` to `head_start + heads` of `heads_total`: q, k and v are three
    planes, each of which is split over the ranks.
    """

    kind: Kind
    layer: int
    dtype: str
    pool: PoolName
    count: int
    stride: int
    offset: int
    item_bytes: int
    tokens: int = 0
    planes: int = 1
    heads: int = 1
    head_start: int = 0
    heads_total: int = 1

    @property
    def key(self) -> Key:
        return (self.kind, self.layer)

    @property
    def place_bytes(self) -> int:
        """What the region takes of one page or slot."""
        return self.item_bytes * (self.tokens if self.pool == "pages" else self.planes * self.heads)

    @property
    def name(self) -> str:
        return f"{self.kind} of layer {self.layer}"


class RegionTable(msgspec.Struct, frozen=True):
    """All regions of one rank. `model` names weights and layout; `pool_bytes` are the lengths of the two pools."""

    model: str
    tp: int
    rank: int
    pool_bytes: dict[PoolName, int]
    regions: tuple[Region, ...]

    @property
    def page_tokens(self) -> int:
        """Tokens per page; 0 for a model without latents."""
        return next((region.tokens for region in self.regions if region.pool == "pages"), 0)


def model_name(weights: bytes, geometry: CacheGeometry) -> str:
    """What two engines must have in common beside their regions: weights, cache dtypes, layout, KDA chunk.

    Not the version of the software: engines are updated one after another.
    """
    parts = (weights.hex(), geometry.dtype, STATE_DTYPE, LAYOUT_VERSION, STATE_CHUNK)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def table_of(
    geometry: CacheGeometry, plan: CachePlan, model: str, rank: int = 0, page_tokens: int = PAGE_TOKENS
) -> RegionTable:
    """The regions of the arenas that `cache/arena.py` allocates for `geometry` and `plan`."""
    item_bytes = [block.values * geometry.value_bytes for block in geometry.latents]
    page_bytes = sum(item_bytes) * page_tokens
    regions: list[Region] = []
    for n, block in enumerate(geometry.latents):
        regions.append(
            Region(
                "mla_latent", block.layer, geometry.dtype, "pages", plan.pages, page_bytes,
                sum(item_bytes[:n]) * page_tokens, item_bytes[n], tokens=page_tokens,
            )
        )  # fmt: skip
    for state in geometry.states:
        heads, total, start = state.heads, state.heads * geometry.tp, state.heads * rank
        for kind, dtype, offset, size, planes in (
            ("kda_state", STATE_DTYPE, state.state_offset, state.state_bytes, 1),
            ("kda_conv", geometry.dtype, state.conv_offset, state.conv_bytes, 3),
        ):
            regions.append(
                Region(
                    kind, state.layer, dtype, "slots", plan.rows, geometry.slot_bytes, offset,  # type: ignore[arg-type]
                    size // (planes * heads), planes=planes, heads=heads, head_start=start, heads_total=total,
                )
            )  # fmt: skip
    pool_bytes: dict[PoolName, int] = {"pages": plan.pages * page_bytes, "slots": plan.rows * geometry.slot_bytes}
    return RegionTable(model, geometry.tp, rank, pool_bytes, tuple(regions))


def digest(tables: Iterable[RegionTable]) -> str:
    """A hash of an engine's tables, for tickets: which description the page numbers in a manifest refer to."""
    return hashlib.sha256(msgspec.msgpack.encode(tuple(tables))).hexdigest()[:32]


def differences(mine: Sequence[RegionTable], theirs: Sequence[RegionTable]) -> list[str]:
    """Every reason why caches cannot move between two engines; empty if they can. One table per rank of each.

    Tensor-parallel degrees, page sizes, strides and counts may differ; what a layer holds may not.
    """
    found = [f"here: {flaw}" for flaw in flaws(mine)] + [f"there: {flaw}" for flaw in flaws(theirs)]
    if found:
        return found
    if mine[0].model != theirs[0].model:
        found.append(f"the weights or cache formats are others: {mine[0].model} here, {theirs[0].model} there")
    ours, others = _by_key(mine), _by_key(theirs)
    found += [f"{ours[key].name} is missing there" for key in sorted(ours.keys() - others.keys())]
    found += [f"{others[key].name} is missing here" for key in sorted(others.keys() - ours.keys())]
    for key in sorted(ours.keys() & others.keys()):
        here, there = ours[key], others[key]
        for field in ("dtype", "pool", "item_bytes", "planes", "heads_total"):
            a, b = getattr(here, field), getattr(there, field)
            if a != b:
                found.append(f"{here.name}: {field} is {a} here, {b} there")
    return found


def flaws(tables: Sequence[RegionTable]) -> list[str]:
    """What is wrong with one engine's own tables: overlaps, regions outside their pool, heads nobody holds."""
    if not tables:
        return ["there are no region tables"]
    found = []
    if [table.rank for table in tables] != list(range(len(tables))) or {table.tp for table in tables} != {len(tables)}:
        ranks = ", ".join(f"{table.rank} of {table.tp}" for table in tables)
        found.append(f"tables are needed for each rank once, in order; these are of ranks {ranks}")
    if len({table.model for table in tables}) > 1:
        found.append("ranks hold different models")
    for table in tables:
        found += [f"rank {table.rank}: {flaw}" for flaw in _table_flaws(table)]
    for key in sorted({region.key for table in tables for region in table.regions}):
        found += _shard_flaws(
            key, [region for table in tables for region in table.regions if region.key == key], tables
        )
    return found


def _table_flaws(table: RegionTable) -> list[str]:
    counts = Counter(region.key for region in table.regions)
    found = [f"{kind} of layer {layer} is declared {n} times" for (kind, layer), n in counts.items() if n > 1]
    if len({region.tokens for region in table.regions if region.pool == "pages"}) > 1:
        found.append("layers have pages of different lengths")
    for region in table.regions:
        size = table.pool_bytes.get(region.pool, 0)
        if min(region.count, region.stride, region.item_bytes, region.planes, region.heads) < 1 or region.offset < 0:
            found.append(f"{region.name}: a size is not positive")
        if region.item_bytes % DTYPE_BYTES.get(region.dtype, 1):
            found.append(f"{region.name}: {region.item_bytes} bytes per item are no whole values of {region.dtype}")
        if region.pool == "pages" and region.tokens < 1:
            found.append(f"{region.name}: a page of {region.tokens} tokens holds nothing")
        if region.offset + region.place_bytes > region.stride or region.count * region.stride > size:
            found.append(
                f"{region.name}: {region.count} x {region.stride} bytes from {region.offset} on "
                f"do not lie inside a pool of {format_bytes(size)}"
            )
    for pool in POOLS:
        places = sorted((r for r in table.regions if r.pool == pool), key=lambda r: r.offset)
        found += [f"{a.name} and {b.name} overlap" for a, b in pairwise(places) if a.offset + a.place_bytes > b.offset]
    return found


def _shard_flaws(key: Key, regions: list[Region], tables: Sequence[RegionTable]) -> list[str]:
    """Latents are whole on every rank; a state's heads are on exactly one rank each."""
    name = f"{key[0]} of layer {key[1]}"
    if regions[0].pool == "pages":
        return [] if len(regions) == len(tables) else [f"{name}: not every rank has it"]
    end, found = 0, []
    for region in sorted(regions, key=lambda region: region.head_start):
        if region.head_start != end:
            found.append(f"{name}: heads {min(end, region.head_start)} to {max(end, region.head_start)} are "
                         f"{'missing' if region.head_start > end else 'on two ranks'}")  # fmt: skip
        end = region.head_start + region.heads
    if end != regions[0].heads_total:
        found.append(f"{name}: ranks hold heads up to {end} of {regions[0].heads_total}")
    return found


def _by_key(tables: Sequence[RegionTable]) -> dict[Key, Region]:
    return {region.key: region for table in tables for region in table.regions}
