"""Tensors meet integers: the model, the two arenas, and one call that runs a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perilune.cache.arena import CacheArenas
from perilune.cache.budget import CachePlan
from perilune.cache.geometry import CacheGeometry
from perilune.cache.tier import Kept
from perilune.engine.graphs import Capture, DecodeSteps, TapeCapture
from perilune.models.checkpoint import Checkpoint
from perilune.models.embedding import StoredEmbedding
from perilune.models.holding import leaves_embedding
from perilune.models.loader import load_weights
from perilune.models.share import WHOLE, Share, narrow
from perilune.models.spec import KdaSpec, ModelSpec
from perilune.nn.batch import CPU, Batch, Piece
from perilune.nn.decoder import Decoder
from perilune.nn.group import ALONE, Group, Heard
from perilune.nn.weights import ModelWeights
from perilune.ops.select import Needs, choose
from perilune.units import format_bytes

if TYPE_CHECKING:
    from perilune.ops.gpu.compiler import Compiler
    from perilune.ops.gpu.guard import Guard
    from perilune.ops.gpu.launch import Gpu
    from perilune.ops.gpu.watch import Watch


class Runner:
    """Owns every tensor of the engine, or of one of its ranks: `share` says which part, `group` joins the parts.

    `patience`: seconds for a step of a GPU, for compiling one kernel, and kernels from mark to mark. The arenas come
    first: a cache that does not fit fails before a long load.
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
        device: torch.device = CPU,
        patience: tuple[float, float, int] = (60, 300, 16),
        hold_embedding: bool = False,
    ) -> None:
        spec = narrow(checkpoint.spec, share)
        self.device = device
        self.arenas = CacheArenas(CacheGeometry.of(checkpoint.spec, dtype, share.tp), plan, device)
        leave = leaves_embedding(checkpoint.spec, hold=hold_embedding or device.type != "cpu")
        loaded = load_weights(
            checkpoint,
            getattr(torch, dtype),
            weight_bits=weight_bits,
            share=share,
            device=device,
            leave_embedding=leave,
        )
        weights = ModelWeights.assemble(spec, loaded, share)
        self._left = weights.embed.stored_bytes if isinstance(weights.embed, StoredEmbedding) else 0
        self.weight_bytes = sum(weight.nbytes for weight in loaded.values())
        self.selection = choose(_needs(spec, weights, dtype, device), kernels)
        ops = self.selection.ops
        self._recorded: DecodeSteps | None = None
        self.guard: Guard | None = None
        self._watch: Watch | None = None
        self._compiler: Compiler | None = None
        self._binaries: Path | None = None
        if self.selection.gpu is not None:
            self._supervise(self.selection.gpu, *patience)
        if self._watch is not None and group is not ALONE:
            group = Heard(group, self._watch.note)
        self._decoder = Decoder(spec, weights.prepared(ops.prepare), ops, group)

    def _supervise(self, gpu: Gpu, seconds: float, compile_seconds: float, stride: int) -> None:
        """Count the kernels and, on a GPU, watch them, and how they are compiled."""
        from perilune.ops.gpu.cache import compile_cache
        from perilune.ops.gpu.compiler import Compiler
        from perilune.ops.gpu.guard import Guard
        from perilune.ops.gpu.trail import Trail
        from perilune.ops.gpu.watch import Watch

        self.guard = Guard.on(gpu)
        if self.device.type == "cuda":
            self._binaries = compile_cache()
            self._compiler = Compiler.hearing(compile_seconds)
            self._watch = Watch(seconds, torch.cuda.Event, Trail.on(gpu, self.device), stride=stride)
            gpu.listeners.append(self._watch)

    @property
    def because(self) -> tuple[str, ...]:
        """What was decided here, a line each."""
        where = () if self._binaries is None else (f"compiled kernels are kept in {self._binaries}",)
        left = f"embedding read from its file, row by row: {format_bytes(self._left)} not held; --hold-embedding does"
        return (self.selection.because, *((left,) if self._left else ()), *where)

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
        if self.guard is not None:
            self.guard.close()
        if self._compiler is not None:
            self._compiler.close()

    def clear(self, slot: int) -> None:
        """Forget what the slot's last owner left."""
        self.arenas.clear(slot)

    def restore(self, source: int, slot: int) -> None:
        """Start `slot` from the snapshot in row `source`."""
        self.arenas.copy(source, slot)

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        """One step; the wanted rows of the pieces in order, [n, D], for `head`, until the next step."""
        if self._recorded is not None and self._recorded.take(pieces):
            return self._recorded.run(pieces)
        return self._decoder(Batch.build(pieces, self.device), self.arenas)

    def record(self, sizes: Sequence[int], context: int, capture: Capture) -> None:
        """From now on, decode steps of up to the largest of `sizes` sequences are replayed."""

        lazy, through = isinstance(capture, TapeCapture), partial(self._decoder.through, cache=self.arenas)
        if self._watch is not None:
            capture = self._watch.follows(capture)
        self._recorded = DecodeSteps(self._decoder.enter, through, sizes, context, self.device, capture, lazy)
        self.wait("the warm-up")

    def settle(self, eager: bool = False) -> None:
        """The warm-up is over: a kernel that is not ready now is late, and with `eager` each is still watched."""
        if self.guard is not None:
            self.guard.settle()
        if self._compiler is not None:
            self._compiler.rest()
        if self._watch is not None:
            self._watch.each = eager

    def wait(self, what: str) -> None:
        """Until the device has done what it was given. Raises EngineDeadError if it does not answer."""
        if self._watch is not None:
            self._watch.wait(what)

    def head(self, rows: Tensor) -> Tensor:
        """fp32 logits [n, vocab] of rows that `run` returned."""
        return self._decoder.head(rows)


def _needs(spec: ModelSpec, weights: ModelWeights, dtype: str, device: torch.device) -> Needs:
    """What the kernels have to serve."""
    dims = [layer.mixer.head_dim for layer in spec.layers if isinstance(layer.mixer, KdaSpec)]
    return Needs(getattr(torch, dtype), tuple(weights.matrices()), max(dims) if dims else None, device)
