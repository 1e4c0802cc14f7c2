"""Tile sizes as data: one default per kernel that works everywhere, and what an architecture does better.

Chosen offline from the ahead-of-time report (registers, spills, LDS); no GPU has timed them yet. Nothing is searched at
run time, and a missing entry is never an error: the default serves. The key is a kernel, or `kernel:format` where a
weight format wants another tile than the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """`blocks`: the kernel's own block sizes by name; `warps` per program; `stages` of the software pipeline."""

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 1

    def at_most(self, **sizes: int) -> Tile:
        """The same with blocks no larger than what they cover."""
        return replace(self, blocks={name: min(size, sizes.get(name, size)) for name, size in self.blocks.items()})


def _tile(warps: int = 4, stages: int = 1, /, **blocks: int) -> Tile:
    return Tile(blocks, warps, stages)


DEFAULTS: dict[str, Tile] = {
    "rms_norm": _tile(4),
    "linear_few": _tile(4, 1, BM=16, BN=32, BK=128),
    "linear_few:fp32": _tile(4, 1, BM=16, BN=32, BK=32),
    "linear_many": _tile(8, 1, BM=64, BN=64, BK=64),
    "linear_many:fp32": _tile(4, 1, BM=32, BN=32, BK=32),
    "reduce": _tile(4, 1, BLOCK=1024),
    "gated_few": _tile(4, 1, BM=16, BN=16, BK=128),
    "gated_many": _tile(8, 1, BM=64, BN=32, BK=64),
    "down_few": _tile(4, 1, BM=16, BN=32, BK=128),
    "down_many": _tile(8, 1, BM=64, BN=64, BK=64),
    "pairs": _tile(4, 1, BLOCK=256),
    "blocks": _tile(1),
    "combine": _tile(4, 1, BLOCK=1024),
    "top_k": _tile(4),
    "kda_prepare": _tile(8),
    "kda_windows": _tile(1, 1, BLOCK=64),
    "kda_intra": _tile(8, 1, BK=64),
    "kda_invert": _tile(4),
    "kda_chunks": _tile(4, 1, BV=16),
    "kda_norm": _tile(4, 1, BT=16),
    "kda_decode": _tile(16),
    "mla_store": _tile(4, 1, BH=8),
    "mla_heads": _tile(4, 1, BM=16, BN=64, BK=64),
    "mla_decode": _tile(8, 1, BH=16, BC=16, BR=64),
    "mla_combine": _tile(4),
    "mla_gather": _tile(4),
    "mla_prefill": _tile(8, 1, BM=32, BN=16, BP=64),
    "sample": _tile(8, 1, BLOCK=4096),
    "truncate": _tile(16, 1, BLOCK=4096),
    "trail": _tile(1),
}

_PRODUCTS = ("linear_few", "linear_few:fp32", "linear_many", "linear_many:fp32", "down_few", "down_many", "mla_heads")


def _staged(stages: int, *names: str) -> dict[str, Tile]:
    """The defaults of `names`, loading so many tiles ahead."""
    return {name: replace(DEFAULTS[name], stages=stages) for name in names}


ARCH_TILES: dict[str, dict[str, Tile]] = {
    "gfx1151": {"mla_heads:int4": _tile(4, 1, BM=16, BN=64, BK=32)},
    "gfx942": {**_staged(2, *_PRODUCTS), "linear_few:fp8": DEFAULTS["linear_few"]},
    "gfx950": {**_staged(2, *_PRODUCTS), "linear_few:mxfp4": DEFAULTS["linear_few"]},
    # copies to shared memory run beside the products, and shared memory is plentiful
    "sm_90": {
        **_staged(3, *_PRODUCTS, "gated_few", "gated_many"),
        "linear_few:int8": DEFAULTS["linear_few"],
        "down_few:bf16": _tile(4, 3, BM=16, BN=64, BK=64),
        "mla_prefill": _tile(8, 3, BM=64, BN=32, BP=128),
    },
}


def tile(arch: str, kernel: str, form: str = "") -> Tile:
    """The most particular entry there is for `kernel` on weights of `form`, on `arch`."""
    for table in (ARCH_TILES.get(arch, {}), DEFAULTS):
        for key in (f"{kernel}:{form}", kernel):
            if key in table:
                return table[key]
    raise KeyError(kernel)
