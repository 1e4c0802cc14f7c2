"""One file of a checkpoint, read straight into tensors: what is not mapped is not resident twice."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.models.safetensors_file import StoredTensor


class Shard(AbstractContextManager["Shard"]):
    """An open safetensors file, closed at the latest with this object. Any number of threads may read from it.

    Raises CheckpointError if it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(str(error)) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __exit__(self, *_: object) -> None:
        self._close()

    def fill(self, target: Tensor, offset: int) -> None:
        """Bytes of the file from `offset` on -> the memory of `target`, which is contiguous."""
        self._read(_bytes_of(target), offset)

    def gather(self, target: Tensor, offsets: Sequence[int]) -> None:
        """Row i of the file's bytes from `offsets[i]` on -> row i of `target`, which is contiguous.

        The system hears of all rows before it is asked for the first: a disk then fetches them side by side.
        """
        if not offsets:
            return
        rows = _bytes_of(target)
        size = len(rows) // len(offsets)
        if len(offsets) > 1 and hasattr(os, "posix_fadvise"):
            for offset in offsets:
                os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        for index, offset in enumerate(offsets):
            self._read(rows[index * size : (index + 1) * size], offset)

    def _read(self, rest: memoryview, offset: int) -> None:
        try:
            while rest:
                count = os.preadv(self._descriptor, [rest], offset)
                if not count:
                    raise self._unreadable(f"It ends before byte {offset + len(rest)}.")
                rest, offset = rest[count:], offset + count
        except OSError as error:
            raise self._unreadable(str(error)) from error

    def forget(self, stored: StoredTensor) -> None:
        """The system need not keep these bytes of the file in memory any longer."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, stored.offset, stored.nbytes, os.POSIX_FADV_DONTNEED)

    def values(self, stored: StoredTensor, first: int = 0, count: int | None = None) -> Tensor:
        """`count` values from the `first` on, in the order they are stored; all that follow if None. A copy."""
        dtype = held_as(stored.dtype)
        values = torch.empty(math.prod(stored.shape) - first if count is None else count, dtype=dtype)
        self.fill(values, stored.offset + first * dtype.itemsize)
        return values

    def _unreadable(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file} cannot be read.", why, "Check that it has not changed.")


def _bytes_of(target: Tensor) -> memoryview:
    memory: memoryview = target.view(-1).view(torch.uint8).numpy().data
    return memory


def held_as(dtype: str) -> torch.dtype:
    """torch's dtype for a stored one. An e8m0 scale is held as the byte it is."""
    found: torch.dtype = torch.uint8 if dtype == "float8_e8m0fnu" else getattr(torch, dtype)
    return found
