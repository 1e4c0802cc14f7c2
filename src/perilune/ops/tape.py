"""One step's calls of C++ kernels, recorded while it runs, to be run again in one go: `csrc/tape.h`.

A tape repeats calls with their addresses, so all they point to is kept: what a step is given and reads, as it is, and
its results in `Results`. It repeats nothing that torch computes in between. What it reads afresh is what lies at those
addresses, and the values of indices are proved again each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import torch
from torch import Tensor


@dataclass
class _Buffer:
    """Memory and whoever has it now; in the end, nobody."""

    memory: np.ndarray[Any, np.dtype[np.uint8]]
    lent: ReferenceType[Any]


class Results:
    """Memory for what kernels return while steps are recorded, which stays when the tensors in it are gone.

    Within a step memory is lent again once no tensor is left in it, as when it is run again nobody reads it any more
    either. Tapes of one engine share it, since steps do not overlap: what a step returns, is held by its tape.
    """

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        free = [buffer for buffer in self._buffers if buffer.lent() is None and buffer.memory.nbytes >= size]
        if free:
            buffer = min(free, key=lambda one: one.memory.nbytes)
        else:
            memory = torch.empty(size, dtype=torch.uint8).numpy()
            buffer = _Buffer(memory, ref(memory))
            self._buffers.append(buffer)
        lent = buffer.memory[:size]
        buffer.lent = ref(lent)
        return torch.from_numpy(lent).view(dtype).view(shape)

    def __contains__(self, tensor: Tensor) -> bool:
        at = tensor.data_ptr()
        return any(0 <= at - buffer.memory.ctypes.data < buffer.memory.nbytes for buffer in self._buffers)

    @property
    def nbytes(self) -> int:
        return sum(buffer.memory.nbytes for buffer in self._buffers)


@dataclass
class Recording:
    """What is kept for the tape that is being recorded: tensors that are no results, and weights."""

    results: Results
    kept: dict[int, object] = field(default_factory=dict)

    def keep(self, what: object) -> None:
        if not isinstance(what, Tensor) or what not in self.results:
            self.kept[id(what)] = what


class Tape:
    """Calls in their order, and all they point to."""

    def __init__(self, calls: Any, kept: tuple[object, ...]) -> None:
        self._calls, self._kept = calls, kept

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> None:
        """Raises IndexError and ValueError for indices there are not, as the calls did; those before have run."""
        self._calls.run()
