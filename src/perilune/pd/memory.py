"""The two pools of one rank as plain bytes, which is all a transport sees. Imports no torch before it meets arenas."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perilune.errors import UnsupportedError
from perilune.pd.compiler import POOL_SHIFT, Bytes, Runs
from perilune.pd.errors import PlanError
from perilune.pd.regions import POOLS

if TYPE_CHECKING:
    from perilune.cache.arena import CacheArenas

BEACON_BYTES = 64
MAX_RANKS = 64
_BEACON, _LANDING = len(POOLS), len(POOLS) + 1  # pool numbers
_OFFSET = (1 << POOL_SHIFT) - 1


class Memory:
    """Pools of bytes under the addresses that plans use, a beacon (64 random bytes in a pool of their own) and a place
    where others' beacons land.

    A peer reads the beacon before anything else. Only if it finds what the control channel promised does a path lead
    to this process and no other.
    """

    def __init__(self, pools: Sequence[NDArray[np.uint8]]) -> None:
        """`pools`: one-dimensional, contiguous, one per name in POOLS. They must outlive the Memory."""
        if len(pools) != len(POOLS):
            raise AssertionError(f"{len(pools)} pools for {POOLS}")
        self._beacon = np.frombuffer(bytearray(secrets.token_bytes(BEACON_BYTES)), np.uint8)
        self._landing = np.zeros(MAX_RANKS * BEACON_BYTES, np.uint8)
        self.pools = (*pools, self._beacon, self._landing)
        for pool in self.pools:
            if pool.ndim != 1 or pool.dtype != np.uint8 or not pool.flags.c_contiguous:
                raise AssertionError("a pool is one contiguous row of bytes")
        self.views = tuple(pool.data for pool in self.pools)
        self._starts = np.array([pool.ctypes.data for pool in self.pools], np.int64)
        self._sizes = np.array([pool.size for pool in self.pools], np.int64)

    @classmethod
    def of(cls, arenas: CacheArenas) -> Memory:
        """The arenas' own memory, not a copy. Raises UnsupportedError if it is not the CPU's."""
        import torch

        pools = []
        for tensor in (arenas.page_arena.tensor, arenas.slot_arena.buffer):
            if tensor.device.type != "cpu":
                raise UnsupportedError(
                    f"Caches on {tensor.device} cannot be handed over.", "Transports read the CPU's memory only.", ""
                )
            flat = tensor.reshape(-1)
            pools.append(flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8))
        return cls(pools)

    @property
    def beacon(self) -> bytes:
        return self._beacon.tobytes()

    def landed(self, rank: int) -> bytes:
        """What a read of `beacon_runs(rank)` brought; zeros before."""
        return self._landing[rank * BEACON_BYTES : (rank + 1) * BEACON_BYTES].tobytes()

    def clear_landing(self, rank: int) -> None:
        self._landing[rank * BEACON_BYTES : (rank + 1) * BEACON_BYTES] = 0

    @property
    def starts(self) -> list[int]:
        """Where each pool begins in this process."""
        return [int(start) for start in self._starts]

    @property
    def sizes(self) -> list[int]:
        return [int(size) for size in self._sizes]

    def pointers(self, address: Bytes, length: Bytes) -> Bytes:
        """Addresses in this process. Raises PlanError for a byte outside the pools."""
        return resolve(address, length, self._starts, self._sizes)

    def slices(self, address: Bytes, length: Bytes) -> list[memoryview]:
        """The runs themselves, writable. Raises PlanError for a byte outside the pools."""
        resolve(address, length, self._starts, self._sizes)
        views, offset = self.views, address & _OFFSET
        columns = zip((address >> POOL_SHIFT).tolist(), offset.tolist(), (offset + length).tolist(), strict=True)
        return [views[pool][start:stop] for pool, start, stop in columns]

    def zero(self, address: Bytes, length: Bytes) -> None:
        """Sets runs to zero. Raises PlanError for a byte outside the pools."""
        for part in self.slices(address, length):
            np.frombuffer(part, np.uint8)[:] = 0


def resolve(address: Bytes, length: Bytes, starts: Bytes, sizes: Bytes) -> Bytes:
    """Pointers of runs in pools at `starts`. Raises PlanError for a byte outside: a plan must never read elsewhere."""
    pool, offset = address >> POOL_SHIFT, address & _OFFSET
    outside = (pool < 0) | (pool >= len(sizes)) | (length < 0)
    outside |= offset + length > sizes[np.where(outside, 0, pool)]
    if outside.any():
        n = int(np.flatnonzero(outside)[0])
        raise PlanError(f"Bytes {int(offset[n])} to {int(offset[n] + length[n])} of pool {int(pool[n])} do not exist.")
    return np.asarray(starts[pool] + offset, np.int64)


def beacon_runs(rank: int) -> Runs:
    """A peer's beacon, to the landing place for that of rank `rank`."""
    source, target = _BEACON << POOL_SHIFT, (_LANDING << POOL_SHIFT) + rank * BEACON_BYTES
    return Runs(np.array([source]), np.array([target]), np.array([BEACON_BYTES]))
