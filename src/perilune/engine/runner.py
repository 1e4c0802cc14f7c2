"""Tensors meet integers: the model, the two arenas, and one call that runs a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perilune.cache.arena import PageArena, SlotArena
from perilune.cache.budget import CachePlan
from perilune.cache.geometry import CacheGeometry
from perilune.models.checkpoint import Checkpoint
from perilune.models.loader import load_weights
from perilune.nn.batch import Batch, Piece
from perilune.nn.decoder import Decoder
from perilune.nn.weights import ModelWeights


class Runner:
    """Owns every tensor of the engine. The arenas come first: a cache that does not fit fails before a long load."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, plan: CachePlan) -> None:
        geometry = CacheGeometry.of(checkpoint.spec, dtype)
        self._pages = PageArena(geometry, plan)
        self._slots = SlotArena(geometry, plan)
        loaded = load_weights(checkpoint, getattr(torch, dtype))
        self._decoder = Decoder(checkpoint.spec, ModelWeights.assemble(checkpoint.spec, loaded))

    @property
    def allocated_bytes(self) -> int:
        return self._pages.allocated_bytes + self._slots.allocated_bytes

    def clear(self, slot: int) -> None:
        """Forget what the slot's last owner left."""
        self._slots.clear(slot)

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """One step; fp32 logits [n, vocab], the wanted rows of the pieces in order."""
        return self._decoder(Batch.build(pieces), self)

    def pages(self, layer: int) -> Tensor:
        return self._pages.latents(layer)

    def state(self, layer: int) -> Tensor:
        return self._slots.state(layer)

    def conv(self, layer: int) -> Tensor:
        return self._slots.conv(layer)
