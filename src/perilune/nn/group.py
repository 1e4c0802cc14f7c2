"""What ranks that share a model exchange while they compute it. One rank alone exchanges nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """The ranks of one engine. All of them make the same calls in the same order."""

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, in fp32 and in the order of ranks, in `part`'s dtype: the same bits on each."""

    def collect(self, part: Tensor) -> Tensor:
        """All ranks' `part` [n, ...] side by side along the last dim, on the first rank; elsewhere `part` itself."""


class Alone:
    """A rank that holds the whole model."""

    def sum(self, part: Tensor) -> Tensor:
        return part

    def collect(self, part: Tensor) -> Tensor:
        return part


ALONE = Alone()


@dataclass(frozen=True)
class Heard:
    """`group`, whose sums are told to whoever watches what a device is given to do."""

    group: Group
    told: Callable[[str], None]

    def sum(self, part: Tensor) -> Tensor:
        out = self.group.sum(part)
        self.told("an exchange between ranks")
        return out

    def collect(self, part: Tensor) -> Tensor:
        out = self.group.collect(part)
        self.told("an exchange between ranks")
        return out
