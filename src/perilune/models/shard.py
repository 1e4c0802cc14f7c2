"""One file of a checkpoint, read straight into tensors: what is not mapped is not resident twice."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.models.safetensors_file import StoredTensor


class Shard(AbstractContextManager["Shard"]):
    """An open safetensors file. Any number of threads may read from it. Raises CheckpointError if it cannot be read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(str(error)) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def fill(self, target: Tensor, offset: int) -> None:
        """Bytes of the file from `offset` on -> the memory of `target`, which is contiguous."""
        rest = target.view(-1).view(torch.uint8).numpy().data
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


def held_as(dtype: str) -> torch.dtype:
    """torch's dtype for a stored one. An e8m0 scale is held as the byte it is."""
    found: torch.dtype = torch.uint8 if dtype == "float8_e8m0fnu" else getattr(torch, dtype)
    return found
