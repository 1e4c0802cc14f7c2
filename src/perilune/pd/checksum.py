"""CRC-32 of runs of a memory, the same number everywhere; fast where the processor multiplies without carries."""

from __future__ import annotations

import zlib

import numpy as np

from perilune.pd.compiler import Bytes
from perilune.pd.memory import Memory


class Checksum:
    """Called with a memory and runs in it (addresses, lengths): their CRC-32 as one text.

    The extension does it, if there is one and it is faster than zlib; others wait for neither.
    """

    def __init__(self) -> None:
        from perilune.ops.native import Native  # it imports torch, and whoever imports this room need not

        native = Native.load()
        self._module = None if isinstance(native, str) else native.module
        self._block = self._module.crc32_block() if self._module else 0

    def __call__(self, memory: Memory, address: Bytes, length: Bytes) -> int:
        """Raises PlanError for a byte outside the memory."""
        if self._module and self._block:
            starts, lengths = memory.pointers(address, length), np.ascontiguousarray(length)
            return int(self._module.crc32(starts.ctypes.data, lengths.ctypes.data, len(starts), self._block))
        crc = 0
        for part in memory.slices(address, length):
            crc = zlib.crc32(part, crc)
        return crc
