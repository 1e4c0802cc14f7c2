"""What ranks send each other while they compute, through torch.distributed: gloo between CPUs, NCCL between GPUs.

A process group of its own per engine, never torch's global one, so that a process may hold several engines. The ranks
are of one host and meet through a file; gloo listens on the loopback address only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from perilune.errors import PeriluneError

_dist: Any = torch.distributed  # its stores and process groups carry no types

LARGE = 1 << 20
"""Bytes of a sum from which ranks add up a stretch each: less is sent, in one message more."""


class RankLostError(PeriluneError):
    """Another rank is gone, or does not answer."""


class RankGroup:
    """This process among the ranks of its engine. `widths`: how many columns each rank's part of the logits has.

    Every rank makes the same calls in the same order; each raises RankLostError if another is gone, or keeps it waiting
    for longer than it was told to be patient.
    """

    def __init__(self, rank: int, widths: Sequence[int]) -> None:
        self.rank, self._widths = rank, tuple(widths)
        self.size = len(self._widths)
        self._group: Any = None

    def connect(self, folder: Path, seconds: float, device: str = "cpu") -> None:
        """Meet the others; then all exchanges are possible. `seconds`: how long to wait for any of them, ever."""
        patience = timedelta(seconds=seconds)
        try:
            store = _dist.FileStore(str(folder / "meeting"), self.size)
            store.set_timeout(patience)
            if device == "cpu":
                gloo = _dist.ProcessGroupGloo._Options()
                gloo._devices = [_dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
                gloo._timeout = patience
                self._group = _dist.ProcessGroupGloo(store, self.rank, self.size, gloo)
            else:
                nccl = _dist.ProcessGroupNCCL.Options()
                nccl._timeout = patience
                self._group = _dist.ProcessGroupNCCL(store, self.rank, self.size, nccl)
        except RuntimeError as error:
            raise RankLostError("The ranks could not connect.", str(error)) from error

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, taken in fp32 in the order of ranks, in `part`'s dtype: the same bits on each.

        Parts travel in `part`'s dtype. An all-reduce of the library would add in an order of its own.
        """
        flat = part.contiguous().view(-1)
        if flat.nbytes < LARGE:
            return _add(self._gather(flat)).to(part.dtype).view(part.shape)
        missing = -flat.numel() % self.size
        padded = torch.nn.functional.pad(flat, (0, missing))
        stretches = torch.empty_like(padded)
        self._wait(self._group.alltoall_base, stretches, padded, [], [])
        own = _add(stretches.chunk(self.size)).to(part.dtype)
        return torch.cat(self._gather(own))[: flat.numel()].view(part.shape)

    def collect(self, part: Tensor) -> Tensor:
        """Rank 0: all ranks' parts [n, width] side by side. Elsewhere: `part`."""
        if self.rank:
            self.send(part, 0)
            return part
        others = [part.new_empty(part.shape[0], width) for width in self._widths[1:]]
        for rank, other in enumerate(others, 1):
            self.receive(other, rank)
        return torch.cat([part, *others], dim=-1)

    def spread(self, values: Tensor) -> None:
        """Rank 0's `values` into those of every other rank, in place."""
        options = _dist.BroadcastOptions()
        options.rootRank = 0
        self._wait(self._group.broadcast, [values], options)

    def send(self, values: Tensor, rank: int) -> None:
        """To one rank, which must call `receive`."""
        self._wait(self._group.send, [values.contiguous()], rank, 0)

    def receive(self, values: Tensor, rank: int) -> None:
        """What `rank` sends, into `values` (contiguous)."""
        self._wait(self._group.recv, [values], rank, 0)

    def _gather(self, part: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self._wait(self._group.allgather, [parts], [part])
        return parts

    def _wait(self, start: Any, *arguments: Any) -> None:
        try:
            start(*arguments).wait()
        except RuntimeError as error:
            raise RankLostError("An exchange between ranks failed.", str(error)) from error


def _add(parts: Sequence[Tensor]) -> Tensor:
    """First to last, in fp32."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total
