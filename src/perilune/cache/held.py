"""What one admitted request holds of the cache, as the manager's books have it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from perilune.cache.radix import Node
from perilune.cache.snapshots import Origin


@dataclass(frozen=True)
class Export:
    """A row that the step under way fills with the state after `length` tokens."""

    length: int
    row: int
    origin: Origin


@dataclass
class Held:
    """One request's places: its `slot`, its `pages` in order, and why they are these.

    `tokens` is what it asked room for; `cached` what of its `prompt` needs no computing, after the state in row
    `source`, which the tree keeps for it as `restoring` until the slot has it. `branch` is where the prompt left
    what the tree has; `exports` what the step under way fills; `intervals` where a long prefill left snapshots.
    """

    slot: int
    tokens: int
    pages: list[int] = field(default_factory=list)
    prompt: tuple[int, ...] = ()
    salt: bytes = b""
    marks: tuple[int, ...] = ()
    cached: int = 0
    source: int | None = None
    restoring: Node | None = None
    branch: int = 0
    exports: list[Export] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    explanation: str = ""

    @property
    def rows(self) -> list[int]:
        """Every row of the slot arena that is the request's: its own, then those being filled."""
        return [self.slot, *(export.row for export in self.exports)]
