"""One step's work as a ragged batch: pieces of sequences, packed without padding.

A piece in `prefill` mode runs the chunked forms and must start at a multiple of 64 tokens. A piece in `decode` mode
runs the recurrent and absorbed forms row by row; it usually holds one token, and several when a preempted request
replays what it had already generated, so that the replay gives the bits the first run gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perilune.cache.geometry import PAGE_TOKENS as PAGE

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Piece:
    """`tokens` at positions start, start + 1, ... of the sequence that owns `slot` and `pages`.

    `exports` (prefill only): (tokens from the piece's start, a multiple of 64; row of the slot arena). The recurrent
    state and the convolution windows after that many tokens are written to that row in the same pass.
    """

    tokens: Sequence[int]
    start: int
    slot: int
    pages: Sequence[int]
    mode: Literal["prefill", "decode"]
    logits: Literal["none", "last", "all"] = "last"
    exports: tuple[tuple[int, int], ...] = ()

    @property
    def logit_count(self) -> int:
        return {"none": 0, "last": 1, "all": len(self.tokens)}[self.logits]


@dataclass(frozen=True)
class PrefillPiece:
    """Rows [offset, offset + count) of the batch. `pages` [n] int64."""

    offset: int
    count: int
    start: int
    slot: int
    pages: Tensor
    exports: tuple[tuple[int, int], ...] = ()

    @property
    def rows(self) -> slice:
        return slice(self.offset, self.offset + self.count)


@dataclass(frozen=True)
class Wave:
    """Decode rows of distinct sequences that may advance together: `rows` and `slots` [n] int64."""

    rows: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Batch:
    """`tokens`, `positions`, `page_ids`, `offsets` are [T] int64; prefill rows come first, decode rows after.

    The context of decode row i is the first `lengths[i]` tokens of the pages in `tables[i]`, itself included: a table
    each, or on a device one tensor [n, most pages], so that no layer has to send them; `lengths` [n] int64.
    `logit_rows` [n]: the rows whose logits are wanted, in the order of the pieces given to `build`; None: all rows.
    """

    tokens: Tensor
    positions: Tensor
    page_ids: Tensor
    offsets: Tensor
    prefill: tuple[PrefillPiece, ...]
    tables: Sequence[Tensor] | Tensor
    lengths: Tensor
    waves: tuple[Wave, ...]
    logit_rows: Tensor | None

    @property
    def decode_start(self) -> int:
        return self.tokens.shape[0] - len(self.lengths)

    @staticmethod
    def build(pieces: Sequence[Piece], device: torch.device = CPU) -> Batch:
        """Pack `pieces`; prefill pieces first. Two pieces may not share a slot."""
        ordered = sorted(range(len(pieces)), key=lambda i: pieces[i].mode == "decode")
        ints = _Ints()
        tokens: list[int] = []
        positions: list[int] = []
        page_ids: list[int] = []
        prefill: list[tuple[Piece, int, slice]] = []
        tables: list[Sequence[int]] = []
        lengths: list[int] = []
        waves: dict[int, list[tuple[int, int]]] = {}
        wanted: dict[int, list[int]] = {}
        for index in ordered:
            piece, offset = pieces[index], len(tokens)
            count = len(piece.tokens)
            span = range(piece.start, piece.start + count)
            tokens.extend(piece.tokens)
            positions.extend(span)
            page_ids.extend(piece.pages[p // PAGE] for p in span)
            if piece.mode == "prefill":
                assert piece.start % PAGE == 0, "a prefill piece starts on a chunk boundary"
                assert all(after % PAGE == 0 and 0 < after <= count for after, _ in piece.exports)
                prefill.append((piece, offset, ints.add(piece.pages)))
            else:
                for i, position in enumerate(span):
                    tables.append(piece.pages)
                    lengths.append(position + 1)
                    waves.setdefault(i, []).append((offset + i, piece.slot))
            wanted[index] = list(range(offset + count - piece.logit_count, offset + count))
        where, at = ints.add(positions), ints.add(page_ids)
        into, text = ints.add([p % PAGE for p in positions]), ints.add(tokens)
        logit_rows = ints.add([row for index in range(len(pieces)) for row in wanted[index]])
        steps = [(ints.add([row for row, _ in w]), ints.add([slot for _, slot in w])) for w in waves.values()]
        known = ints.add(lengths)
        if device.type == "cpu":
            each = {id(pages): ints.add(pages) for pages in tables}  # rows of one piece share a table
            sent = ints.send(device)
            table: Sequence[Tensor] | Tensor = [sent[each[id(pages)]] for pages in tables]
        else:
            most = max(map(len, tables), default=0)
            packed = ints.add([page for pages in tables for page in (*pages, *[0] * (most - len(pages)))])
            sent = ints.send(device)
            table = sent[packed].view(len(tables), most)
        return Batch(
            tokens=sent[text],
            positions=sent[where],
            page_ids=sent[at],
            offsets=sent[into],
            prefill=tuple(
                PrefillPiece(first, len(piece.tokens), piece.start, piece.slot, sent[pages], piece.exports)
                for piece, first, pages in prefill
            ),
            tables=table,
            lengths=sent[known],
            waves=tuple(Wave(sent[rows], sent[slots]) for rows, slots in steps),
            logit_rows=sent[logit_rows],
        )


class _Ints:
    """Lists of integers on their way to a device as one tensor, since a copy costs more than what is in it."""

    def __init__(self) -> None:
        self._values: list[int] = []

    def add(self, values: Sequence[int]) -> slice:
        """Where they will be: at a multiple of 16 bytes, for which kernels are compiled."""
        start = len(self._values)
        self._values.extend(values)
        self._values.extend([0] * (len(values) % 2))
        return slice(start, start + len(values))

    def send(self, device: torch.device) -> Tensor:
        """All of them, int64, from pinned memory where a device can fetch them by itself."""
        values = torch.tensor(self._values, dtype=torch.int64, pin_memory=device.type == "cuda")
        return values.to(device, non_blocking=True)
