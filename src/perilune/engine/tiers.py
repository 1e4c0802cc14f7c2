"""Sets up the tiers below one engine's arenas: what makes an entry its own, and where it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from perilune import __version__
from perilune.cache.disk import QUEUE_BYTES, DiskTier
from perilune.cache.geometry import CacheGeometry
from perilune.cache.host import HostTier
from perilune.cache.manager import CacheManager
from perilune.cache.store import LAYOUT_VERSION, Store
from perilune.cache.tier import Kept
from perilune.cache.tiers import Tiers
from perilune.engine.config import EngineConfig
from perilune.models.checkpoint import Checkpoint
from perilune.models.fingerprint import fingerprint


def identity(weights: bytes, checkpoint: Checkpoint, dtype: str, kernels: str, tp: int = 1, ep: bool = False) -> bytes:
    """A hash of all that an entry's bytes depend on beside its tokens: weights, layout, and what computed them.

    Another build may round otherwise, so its entries are others: warm = cold would not hold across the two.
    """
    parts = (
        weights.hex(), repr(CacheGeometry.of(checkpoint.spec, dtype, tp)), ep, LAYOUT_VERSION,
        kernels, __version__, torch.__version__, torch.backends.cpu.get_cpu_capability(),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).digest()


def open_tiers(
    config: EngineConfig, checkpoint: Checkpoint, dtype: str, kernels: str, manager: CacheManager, kept: Kept
) -> Tiers | None:
    """None unless `cache_dir` or `cache_host_bytes` is set.

    `kernels` says which backend serves which op, on weights of how many bits.

    Raises ConfigError if the folder cannot be used.
    """
    if config.cache_dir is None and config.cache_host_bytes is None:
        return None
    weights, disk = fingerprint(checkpoint.path), None
    model = identity(weights, checkpoint, dtype, kernels, config.tp, config.ep)
    if config.cache_dir is not None:
        store = Store(Path(config.cache_dir).expanduser(), model, config.cache_disk_bytes)
        # an eighth of what is kept may be on its way: a long prompt goes down whole or not at all
        disk = DiskTier(store, max(QUEUE_BYTES, manager.plan.total_bytes // 8))
    host = None if config.cache_host_bytes is None else HostTier(config.cache_host_bytes, disk)
    return Tiers(model, manager, kept, host, disk)
