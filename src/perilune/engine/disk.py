"""Sets up the disk tier of one engine: what makes an entry its own, and where it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from perilune import __version__
from perilune.cache.arena import CacheArenas
from perilune.cache.geometry import CacheGeometry
from perilune.cache.manager import CacheManager
from perilune.cache.store import LAYOUT_VERSION, Store
from perilune.cache.tier import DiskTier
from perilune.engine.config import EngineConfig
from perilune.models.checkpoint import Checkpoint
from perilune.models.fingerprint import fingerprint


def identity(checkpoint: Checkpoint, dtype: str, kernels: str) -> bytes:
    """A hash of all that an entry's bytes depend on beside its tokens: weights, layout, and what computed them.

    Another build may round otherwise, so its entries are others: warm = cold would not hold across the two.
    """
    parts = (
        fingerprint(checkpoint.path).hex(), repr(CacheGeometry.of(checkpoint.spec, dtype)), LAYOUT_VERSION,
        kernels, __version__, torch.__version__, torch.backends.cpu.get_cpu_capability(),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).digest()


def open_tier(
    config: EngineConfig, checkpoint: Checkpoint, dtype: str, kernels: str, manager: CacheManager, arenas: CacheArenas
) -> DiskTier | None:
    """None unless `cache_dir` is set. `kernels` says which backend serves which op, on weights of how many bits.

    Raises ConfigError if the folder cannot be used.
    """
    if config.cache_dir is None:
        return None
    model = identity(checkpoint, dtype, kernels)
    store = Store(Path(config.cache_dir).expanduser(), model, config.cache_disk_bytes)
    return DiskTier(store, model, manager, arenas)
