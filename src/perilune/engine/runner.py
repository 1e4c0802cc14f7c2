"""Tensors meet integers: the model, the two arenas, and one call that runs a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perilune.cache.arena import CacheArenas
from perilune.cache.budget import CachePlan
from perilune.cache.geometry import CacheGeometry
from perilune.cache.tier import Kept
from perilune.models.checkpoint import Checkpoint
from perilune.models.loader import load_weights
from perilune.models.share import WHOLE, Share, narrow
from perilune.models.spec import KdaSpec, ModelSpec
from perilune.nn.batch import Batch, Piece
from perilune.nn.decoder import Decoder
from perilune.nn.group import ALONE, Group
from perilune.nn.weights import ModelWeights
from perilune.ops.select import Needs, choose


class Runner:
    """Owns every tensor of the engine, or of one of its ranks: `share` says which part, `group` joins the parts.

    The arenas come first: a cache that does not fit fails before a long load.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str,
        plan: CachePlan,
        kernels: str = "auto",
        weight_bits: int = 16,
        share: Share = WHOLE,
        group: Group = ALONE,
    ) -> None:
        spec = narrow(checkpoint.spec, share)
        self.arenas = CacheArenas(CacheGeometry.of(checkpoint.spec, dtype, share.tp), plan)
        loaded = load_weights(checkpoint, getattr(torch, dtype), weight_bits=weight_bits, share=share)
        weights = ModelWeights.assemble(spec, loaded, share)
        self.weight_bytes = sum(weight.nbytes for weight in loaded.values())
        self.selection = choose(_needs(spec, weights, dtype), kernels)
        ops = self.selection.ops
        self._decoder = Decoder(spec, weights.prepared(ops.prepare), ops, group)

    @property
    def because(self) -> tuple[str, ...]:
        """What was decided here, a line each."""
        return (self.selection.because,)

    @property
    def allocated_bytes(self) -> int:
        return self.arenas.allocated_bytes

    @property
    def kept(self) -> Kept:
        """The pages and states that tiers below may copy."""
        return self.arenas

    def check(self) -> None:
        """Raises EngineDeadError if a part of the model is gone."""

    def close(self) -> None:
        """End what was started."""

    def clear(self, slot: int) -> None:
        """Forget what the slot's last owner left."""
        self.arenas.clear(slot)

    def restore(self, source: int, slot: int) -> None:
        """Start `slot` from the snapshot in row `source`."""
        self.arenas.copy(source, slot)

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """One step; the wanted rows of the pieces in order, [n, D], for `head`."""
        return self._decoder(Batch.build(pieces), self.arenas)

    def head(self, rows: Tensor) -> Tensor:
        """fp32 logits [n, vocab] of rows that `run` returned."""
        return self._decoder.head(rows)


def _needs(spec: ModelSpec, weights: ModelWeights, dtype: str) -> Needs:
    """What the kernels have to serve."""
    dims = [layer.mixer.head_dim for layer in spec.layers if isinstance(layer.mixer, KdaSpec)]
    return Needs(getattr(torch, dtype), tuple(weights.matrices()), max(dims) if dims else None)
