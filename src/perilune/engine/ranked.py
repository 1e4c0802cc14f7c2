"""A runner whose model is spread over ranks: this process is the first one, decides, and takes the others along.

Its interface is `Runner`'s, so the loop above knows nothing of ranks. Whatever goes wrong on one rank during an order
ends the engine: the ranks would no longer be at the same place, and a sum over them would be of different things.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perilune.cache.arena import CacheArenas
from perilune.cache.tier import Kept, Kind, Payload
from perilune.engine.config import EngineConfig, EnginePlan
from perilune.engine.graphs import Capture
from perilune.engine.orders import (
    Clear,
    Head,
    Loaded,
    Order,
    ReadState,
    Record,
    Restore,
    Run,
    Settle,
    WritePage,
    WriteState,
)
from perilune.engine.parallel import RankGroup
from perilune.engine.ranks import Ranks
from perilune.engine.runner import Runner
from perilune.models.checkpoint import Checkpoint
from perilune.models.share import WHOLE, Share
from perilune.models.spec import ModelSpec
from perilune.nn.batch import Piece
from perilune.nn.group import ALONE, Group
from perilune.ops.select import Selection
from perilune.units import format_bytes

if TYPE_CHECKING:
    from perilune.ops.gpu.guard import Guard


def open_runner(
    config: EngineConfig, checkpoint: Checkpoint, plan: EnginePlan, device: torch.device
) -> Runner | RankedRunner:
    """What computes for this engine; `device` is the first rank's. Raises PeriluneError if a rank cannot hold its
    share."""
    if config.tp == 1:
        return load_rank(config, checkpoint, plan, ALONE, device)
    return RankedRunner(config, checkpoint, plan, device)


def group_of(config: EngineConfig, spec: ModelSpec, rank: int) -> RankGroup:
    """Rank `rank` of the engine's group, not connected yet."""
    return RankGroup(rank, [len(Share(config.tp, n, config.ep).of(spec.vocab)) for n in range(config.tp)])


def load_rank(
    config: EngineConfig, checkpoint: Checkpoint, plan: EnginePlan, group: Group, device: torch.device
) -> Runner:
    """What one rank computes with."""
    share = Share(config.tp, group.rank, config.ep) if isinstance(group, RankGroup) else WHOLE
    patience = (config.gpu_seconds, config.compile_seconds, config.gpu_marks)
    return Runner(
        checkpoint,
        plan.dtype,
        plan.cache,
        config.kernels,
        plan.weight_bits,
        share,
        group,
        device,
        patience,
        config.hold_embedding,
    )


class RankedRunner:
    """The first rank. `held[r]` is what rank r allocated."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, plan: EnginePlan, device: torch.device) -> None:
        self._ranks = Ranks(config, checkpoint.path)
        try:
            self._group = group_of(config, checkpoint.spec, 0)
            self._own = load_rank(config, checkpoint, plan, self._group, device)
            self.held = (Loaded(self._own.weight_bytes, self._own.allocated_bytes), *self._ranks.wait_loaded())
            with self._others():
                self._ranks.join()
                self._group.connect(self._ranks.folder, config.rank_seconds, device.type)
        except BaseException:
            self._ranks.close()
            raise
        self._vocab = checkpoint.spec.vocab
        self.kept: Kept = _KeptByAll(self._own.arenas, config.tp, self)

    @property
    def selection(self) -> Selection:
        return self._own.selection

    @property
    def arenas(self) -> CacheArenas:
        """This rank's own."""
        return self._own.arenas

    @property
    def device(self) -> torch.device:
        """This rank's own."""
        return self._own.device

    @property
    def guard(self) -> Guard | None:
        """Of this rank's kernels: all ranks run the same."""
        return self._own.guard

    @property
    def allocated_bytes(self) -> int:
        """Of each rank alike: the cache is planned per rank."""
        return self._own.allocated_bytes

    @property
    def because(self) -> tuple[str, ...]:
        held = (
            f"rank {rank}: {format_bytes(held.weight_bytes)} of weights, {format_bytes(held.cache_bytes)} of cache"
            for rank, held in enumerate(self.held)
        )
        return (*self._own.because, *held)

    def clear(self, slot: int) -> None:
        with self.together(Clear(slot)):
            self._own.clear(slot)

    def restore(self, source: int, slot: int) -> None:
        with self.together(Restore(source, slot)):
            self._own.restore(source, slot)

    def run(self, pieces: Sequence[Piece]) -> Tensor:
        with self.together(Run(tuple(pieces))):
            return self._own.run(pieces)

    def head(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.empty(0, self._vocab, device=self.device)
        with self.together(Head(len(rows))):
            rows = rows.contiguous()
            self._group.spread(rows)
            return self._own.head(rows)

    def open_doors(self, model: str) -> list[str]:
        """Where each rank after the first waits for a RemoteRank."""
        return [self._ranks.open_door(rank, model) for rank in range(1, self._ranks.size)]

    def record(self, sizes: Sequence[int], context: int, capture: Capture) -> None:
        """The others record the same sizes in the same order, each as its device does."""
        with self.together(Record(tuple(sizes), context)):
            self._own.record(sizes, context, capture)

    def settle(self, eager: bool = False) -> None:
        with self.together(Settle(eager)):
            self._own.settle(eager)

    def wait(self, what: str) -> None:
        self._own.wait(what)

    def check(self) -> None:
        self._ranks.check()

    def close(self) -> None:
        self._own.close()
        self._ranks.close()

    @contextmanager
    def together(self, order: Order) -> Iterator[RankGroup]:
        """The others obey `order` while this rank does its part of it. Raises EngineDeadError: this was the end."""
        with self._others():
            self._ranks.tell(order)
            yield self._group

    @contextmanager
    def _others(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._ranks.cause(error) from error


class _KeptByAll:
    """Pages, which all ranks have alike, and states, of which each has its heads: one after another, by rank."""

    def __init__(self, own: CacheArenas, ranks: int, runner: RankedRunner) -> None:
        self._own, self._ranks, self._runner = own, ranks, runner

    def size(self, kind: Kind) -> int:
        return self._own.size(kind) * (self._ranks if kind == "state" else 1)

    def read(self, kind: Kind, index: int) -> Payload:
        if kind == "page":
            return self._own.read(kind, index)
        payload = bytearray(self.size(kind))
        shares = torch.frombuffer(payload, dtype=torch.uint8).chunk(self._ranks)
        with self._runner.together(ReadState(index)) as group:
            shares[0].copy_(self._own.place(kind, index))
            for rank, share in enumerate(shares[1:], 1):
                landing = share.to(self._runner.device)  # itself on a CPU
                group.receive(landing, rank)
                share.copy_(landing)
        return payload

    def write(self, kind: Kind, index: int, payload: Payload) -> None:
        values = torch.frombuffer(payload, dtype=torch.uint8).to(self._runner.device)
        if kind == "page":
            with self._runner.together(WritePage(index)) as group:
                group.spread(values)
                self._own.place(kind, index).copy_(values)
            return
        shares = values.chunk(self._ranks)
        with self._runner.together(WriteState(index)) as group:
            self._own.place(kind, index).copy_(shares[0])
            for rank, share in enumerate(shares[1:], 1):
                group.send(share, rank)
