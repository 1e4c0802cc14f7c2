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
from torch.nn.utils.rnn import pad_sequence

from perilune.cache.geometry import PAGE_TOKENS as PAGE


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
    and an int each, or on a device one tensor [n, most pages] and one [n] int64, so that no layer has to send them.
    `logit_rows` [n]: the rows whose logits are wanted, in the order of the pieces given to `build`.
    """

    tokens: Tensor
    positions: Tensor
    page_ids: Tensor
    offsets: Tensor
    prefill: tuple[PrefillPiece, ...]
    tables: Sequence[Tensor] | Tensor
    lengths: Sequence[int] | Tensor
    waves: tuple[Wave, ...]
    logit_rows: Tensor

    @property
    def decode_start(self) -> int:
        return self.tokens.shape[0] - len(self.lengths)

    @staticmethod
    def build(pieces: Sequence[Piece], device: torch.device | None = None) -> Batch:
        """Pack `pieces`; prefill pieces first. Two pieces may not share a slot."""

        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        ordered = sorted(range(len(pieces)), key=lambda i: pieces[i].mode == "decode")
        tokens: list[int] = []
        positions: list[int] = []
        page_ids: list[int] = []
        prefill: list[PrefillPiece] = []
        tables: list[Tensor] = []
        lengths: list[int] = []
        waves: dict[int, list[tuple[int, int]]] = {}
        wanted: dict[int, list[int]] = {}
        for index in ordered:
            piece, offset = pieces[index], len(tokens)
            count = len(piece.tokens)
            where = range(piece.start, piece.start + count)
            tokens.extend(piece.tokens)
            positions.extend(where)
            page_ids.extend(piece.pages[p // PAGE] for p in where)
            if piece.mode == "prefill":
                assert piece.start % PAGE == 0, "a prefill piece starts on a chunk boundary"
                assert all(after % PAGE == 0 and 0 < after <= count for after, _ in piece.exports)
                prefill.append(PrefillPiece(offset, count, piece.start, piece.slot, ints(piece.pages), piece.exports))
            else:
                table = torch.tensor(piece.pages, dtype=torch.int64)
                for i, position in enumerate(where):
                    tables.append(table)
                    lengths.append(position + 1)
                    waves.setdefault(i, []).append((offset + i, piece.slot))
            wanted[index] = list(range(offset + count - piece.logit_count, offset + count))

        on_device = device is not None and device.type != "cpu"
        return Batch(
            tokens=ints(tokens),
            positions=ints(positions),
            page_ids=ints(page_ids),
            offsets=ints([p % PAGE for p in positions]),
            prefill=tuple(prefill),
            tables=pad_sequence(tables, batch_first=True).to(device) if on_device and tables else tables,
            lengths=ints(lengths) if on_device else lengths,
            waves=tuple(
                Wave(ints([row for row, _ in wave]), ints([slot for _, slot in wave])) for wave in waves.values()
            ),
            logit_rows=ints([row for index in range(len(pieces)) for row in wanted[index]]),
        )
