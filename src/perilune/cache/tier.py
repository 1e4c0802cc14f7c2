"""What a place below the arenas offers, so that host memory and disk are used alike. Imports no torch."""

from __future__ import annotations

from typing import Literal, Protocol

Kind = Literal["page", "state"]
KINDS: tuple[Kind, ...] = ("page", "state")
Payload = bytearray
TierName = Literal["host", "disk"]


class Rate:
    """Units per second; what was seen last weighs most. 0 until something was seen."""

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0

    @property
    def per_second(self) -> float:
        return self._amount / self._seconds if self._seconds else 0.0

    def note(self, amount: float, seconds: float) -> None:
        if amount > 0 and seconds > 0:
            self._amount, self._seconds = self._amount / 2 + amount, self._seconds / 2 + seconds


class Kept(Protocol):
    """The arenas as tiers see them: pages and slot rows by index, as bytes. Of several ranks: those of all."""

    def size(self, kind: Kind) -> int:
        """Bytes of one page or row; 0 if the model has none."""

    def read(self, kind: Kind, index: int) -> Payload:
        """A copy, in host memory."""

    def write(self, kind: Kind, index: int, payload: Payload) -> None:
        """Put back what `read` returned."""


class Tier(Protocol):
    """Pages and states by key. No call waits for anything slower than the tier itself reads."""

    @property
    def name(self) -> TierName: ...
    @property
    def reading(self) -> Rate:
        """Bytes per second, from what was read so far."""

    def has(self, kind: Kind, key: bytes) -> bool: ...

    def takes(self, size: int) -> bool:
        """Whether `size` more bytes can be handed over now."""

    def read(self, kind: Kind, key: bytes, length: int) -> Payload | None:
        """The payload of `length` bytes; None if it is not there or not to be trusted. It is young again."""

    def write(self, kind: Kind, key: bytes, payload: Payload) -> bool:
        """Keep `payload`; what is there already becomes young again. False if it was not taken."""

    def touch(self, kind: Kind, key: bytes) -> None:
        """Somebody is about to need it."""

    def named(self) -> dict[str, int | float]:
        """Its numbers under the names that `/metrics` shows."""
