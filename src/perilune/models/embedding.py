"""Rows of the embedding by token: out of memory, or out of the file they are stored in.

A step looks up one row of a few KB per token, in a table of up to a GB that nothing else reads. Read by position, a row
costs a microsecond while the system has it in its own cache of files, which gives way when memory is wanted; mapped,
every row would bring 64 KiB of its neighbours along, resident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perilune.models.quantised import Part
from perilune.models.safetensors_file import StoredTensor
from perilune.models.shard import Shard, held_as


class Embedding(Protocol):
    """A table [tokens, D], or the rows of it that a rank has."""

    def __len__(self) -> int:
        """How many tokens have a row."""

    def rows(self, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        """int64 [T] -> [T, D], in `out` (contiguous) if it is given. Raises IndexError for a token without a row."""


@dataclass(frozen=True)
class HeldEmbedding:
    """In memory, where the model computes."""

    table: Tensor

    def __len__(self) -> int:
        return self.table.shape[0]

    def rows(self, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        return self.table[tokens] if out is None else torch.index_select(self.table, 0, tokens, out=out)


class StoredEmbedding:
    """In the file, which stays open: one that is moved or replaced meanwhile goes on serving. For a CPU.

    `part` says which rows are this rank's, and the dtype they are returned in; `stored_bytes` is what they take in the
    file, `nbytes` what they take in memory. Raises CheckpointError, here or from `rows`, if the file cannot be read.
    """

    nbytes = 0

    def __init__(self, stored: StoredTensor, part: Part) -> None:
        self._count, self._width = part.shape
        self.dtype: torch.dtype = getattr(torch, part.dtype)
        self._stored = held_as(stored.dtype)
        self._row_bytes = self._width * self._stored.itemsize
        self._offset = stored.offset + (part.taken[1] if part.taken else 0) * self._row_bytes
        self.stored_bytes = self._count * self._row_bytes
        self._shard = Shard(stored.file)

    def __len__(self) -> int:
        return self._count

    def rows(self, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        wanted = tokens.tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < self._count:
            raise IndexError(f"tokens {min(wanted)} to {max(wanted)} of an embedding of {self._count}")
        if out is None:
            out = torch.empty(len(wanted), self._width, dtype=self.dtype)
        same = out.dtype == self._stored
        read = out if same else torch.empty(out.shape, dtype=self._stored)
        self._shard.gather(read, [self._offset + token * self._row_bytes for token in wanted])
        return out if same else out.copy_(read)
