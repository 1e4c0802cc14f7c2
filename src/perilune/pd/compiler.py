"""From two engines' tables and page tables to byte ranges: what one rank copies from where to where. Imports no torch.

Both sides are written as segments of one canonical line of bytes that knows neither tensor parallelism nor page size:

    mla_latent [layer][token][values]      kda_state [layer][head][K x V]      kda_conv [layer][q, k, v][head][K x taps]

and a plan is where the segments of source and target meet. The same function serves equal and different degrees of
tensor parallelism, page sizes, fragmented page tables, prefix hits and single chunks of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from perilune.pd.errors import PlanError
from perilune.pd.regions import POOLS, Key, Region, RegionTable
from perilune.units import format_bytes

Bytes = NDArray[np.int64]
POOL_SHIFT = 48  # an address is a pool's number above, a byte's offset in that pool below


class Place(msgspec.Struct, frozen=True):
    """Where one sequence lies in one engine, the same on all its ranks: page i holds tokens from i x page_tokens.

    `slot` is None while there is no state to move.
    """

    pages: tuple[int, ...]
    slot: int | None = None


@dataclass(frozen=True)
class Runs:
    """`length[i]` bytes from address `source[i]` to address `target[i]`, by rising target; none can be merged."""

    source: Bytes
    target: Bytes
    length: Bytes

    @classmethod
    def none(cls) -> Runs:
        return cls(_none, _none, _none)

    def __len__(self) -> int:
        return len(self.length)

    @property
    def nbytes(self) -> int:
        return int(self.length.sum())

    def batches(self, limit: int) -> list[Runs]:
        """The same bytes in pieces of at most `limit` bytes; a run that crosses a border is cut there."""
        if not len(self):
            return []
        ends = np.cumsum(self.length)
        borders = np.arange(limit, int(ends[-1]), limit)
        first, last = np.searchsorted(ends, np.append(0, borders), "right"), np.searchsorted(ends, borders, "left")
        cut = []
        for n, (start, stop) in enumerate(zip(first, np.append(last, len(self) - 1), strict=True)):
            source, target = self.source[start : stop + 1].copy(), self.target[start : stop + 1].copy()
            length = self.length[start : stop + 1].copy()
            length[-1] -= max(0, int(ends[stop]) - (n + 1) * limit)
            before = n * limit - (int(ends[start]) - int(self.length[start]))
            source[0] += before
            target[0] += before
            length[0] -= before
            cut.append(Runs(source, target, length))
        return cut


@dataclass(frozen=True)
class _Segments:
    """Bytes [start, start + length) of the canonical line lie at `local`, on the source rank `rank`; `start` rises."""

    start: Bytes
    local: Bytes
    length: Bytes
    rank: Bytes


def compile_pull(
    target: RegionTable,
    at: Place,
    sources: Sequence[RegionTable],
    source_at: Place,
    tokens: tuple[int, int],
) -> list[Runs]:
    """What the rank of `target` copies from each rank of `sources` for tokens [first, end): runs by source rank.

    State and convolution windows are included if both places have a slot; they are those after the prompt's last
    token, whatever `tokens` is. Latents are whole on every source rank and come from one of them. `differences` of the
    tables must have been empty. Raises PlanError if a page or slot does not exist or a byte would be left out.
    """
    first, end = tokens
    if not 0 <= first <= end:
        raise PlanError(f"Tokens {first} to {end} are no range.")
    stateful = at.slot is not None and source_at.slot is not None
    bases = _bases(target, end)
    wanted = _segments(target, at, bases, first, end, stateful, rank=0)
    chosen = target.rank % len(sources)
    offered = [
        _segments(table, source_at, bases, first, end if table.rank == chosen else first, stateful, table.rank)
        for table in sources
    ]
    runs, ranks = _intersect(wanted, _join(offered))
    moved, needed = runs.nbytes, int(wanted.length.sum())
    if moved != needed:
        raise PlanError(
            f"{format_bytes(moved)} of {format_bytes(needed)} have a source.",
            "The source does not hold every layer, head or token that is needed here.",
            "Compare both engines with `perilune pd check`.",
        )
    return [_merge(runs, ranks == table.rank) for table in sources]


def tail(table: RegionTable, at: Place, end: int) -> tuple[Bytes, Bytes]:
    """(addresses, lengths) of what follows token `end - 1` in its page: to be zero before anybody reads the page."""
    size = table.page_tokens
    if not size or end % size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    stop = -(-end // size) * size
    rest = _segments(table, at, _bases(table, stop), end, stop, False, 0)
    return rest.local, rest.length


def _bases(table: RegionTable, tokens: int) -> Mapping[Key, int]:
    """Where each region begins on the canonical line of a sequence of `tokens` tokens, in the order of the keys."""
    bases, base = {}, 0
    for region in sorted(table.regions, key=lambda region: region.key):
        bases[region.key] = base
        base += region.item_bytes * (tokens if region.pool == "pages" else region.planes * region.heads_total)
    return bases


def _segments(
    table: RegionTable, at: Place, bases: Mapping[Key, int], first: int, end: int, stateful: bool, rank: int
) -> _Segments:
    parts: list[tuple[Bytes, Bytes, Bytes]] = []
    pages = np.asarray(at.pages, np.int64)
    for region in sorted(table.regions, key=lambda region: region.key):
        if region.pool == "pages" and end > first:
            parts.append(_latents(region, pages, bases[region.key], first, end))
        elif region.pool == "slots" and stateful:
            assert at.slot is not None
            parts.append(_state(region, at.slot, bases[region.key]))
    start, local, length = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (_none,) * 3
    return _Segments(start, local, length, np.full(len(start), rank, np.int64))


_none: Bytes = np.empty(0, np.int64)


def _latents(region: Region, pages: Bytes, base: int, first: int, end: int) -> tuple[Bytes, Bytes, Bytes]:
    """One segment per page touched by tokens [first, end)."""
    size = region.tokens
    index = np.arange(first // size, -(-end // size))
    if len(pages) <= index[-1]:
        raise PlanError(f"{len(pages)} pages of {size} tokens do not hold token {end - 1}.")
    page = pages[index[0] : index[-1] + 1]
    _inside("page", int(page.min()), int(page.max()), region.count)
    start, stop = np.maximum(index * size, first), np.minimum((index + 1) * size, end)
    local = _address(region) + page * region.stride + (start - index * size) * region.item_bytes
    return base + start * region.item_bytes, local, (stop - start) * region.item_bytes


def _state(region: Region, slot: int, base: int) -> tuple[Bytes, Bytes, Bytes]:
    """One segment per plane: this rank's heads."""
    _inside("slot", slot, slot, region.count)
    plane = np.arange(region.planes)
    start = base + (plane * region.heads_total + region.head_start) * region.item_bytes
    local = _address(region) + slot * region.stride + plane * region.heads * region.item_bytes
    return start, local, np.full(region.planes, region.heads * region.item_bytes, np.int64)


def _address(region: Region) -> int:
    return (POOLS.index(region.pool) << POOL_SHIFT) + region.offset


def _inside(what: str, low: int, high: int, count: int) -> None:
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise PlanError(f"There is no {what} {wrong}: the table declares {count}.", "A manifest names it all the same.")


def _join(parts: Sequence[_Segments]) -> _Segments:
    """All ranks' segments as one line. Raises PlanError if two ranks claim the same byte."""
    start, local, length, rank = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "local", "length", "rank")
    )
    if len(parts) > 1:
        order = np.argsort(start, kind="stable")
        start, local, length, rank = start[order], local[order], length[order], rank[order]
    if np.any(start[:-1] + length[:-1] > start[1:]):
        raise PlanError("Two source ranks offer the same bytes.", "Their region tables overlap.")
    return _Segments(start, local, length, rank)


def _intersect(target: _Segments, source: _Segments) -> tuple[Runs, Bytes]:
    """Where two rising lists of disjoint segments meet, by rising address of the target, and the source rank of each
    piece."""
    low = np.searchsorted(source.start + source.length, target.start, "right")
    high = np.searchsorted(source.start, target.start + target.length, "left")
    counts = np.maximum(high - low, 0)
    order = np.argsort(target.local)  # of segments, not of pieces: these are many more if source pages are small
    counts = counts[order]
    t = np.repeat(order, counts)
    s = np.arange(len(t)) + np.repeat(low[order] - (np.cumsum(counts) - counts), counts)
    begin = np.maximum(target.start[t], source.start[s])
    stop = np.minimum(target.start[t] + target.length[t], source.start[s] + source.length[s])
    runs = Runs(source.local[s] + begin - source.start[s], target.local[t] + begin - target.start[t], stop - begin)
    return runs, source.rank[s]


def _merge(runs: Runs, chosen: NDArray[np.bool_]) -> Runs:
    """The chosen runs, neighbours on both sides joined."""
    source, target, length = runs.source[chosen], runs.target[chosen], runs.length[chosen]
    if not len(length):
        return Runs.none()
    joins = (source[:-1] + length[:-1] == source[1:]) & (target[:-1] + length[:-1] == target[1:])
    heads = np.flatnonzero(np.append(True, ~joins))
    return Runs(source[heads], target[heads], np.add.reduceat(length, heads))
