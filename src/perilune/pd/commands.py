"""What the control thread tells movers and what they report: plain values, so that a rank may be another process."""

from __future__ import annotations

from typing import Literal

import msgspec

from perilune.pd.compiler import Place
from perilune.pd.regions import RegionTable

FailureKind = Literal["transient", "unreachable", "final"]


class Rendezvous(msgspec.Struct, frozen=True):
    """Everything a reader needs of another engine: per rank a table, a beacon, and an address per transport."""

    incarnation: str
    tables: tuple[RegionTable, ...]
    beacons: tuple[bytes, ...]
    addresses: dict[str, tuple[bytes, ...]]


class Meet(msgspec.Struct, tag=True, frozen=True):
    """Remember this engine. Pulls name it by its incarnation."""

    engine: Rendezvous


class Forget(msgspec.Struct, tag=True, frozen=True):
    incarnation: str


class Fetch(msgspec.Struct, tag=True, frozen=True):
    """Copy tokens [first, end), and the state if both places have a slot, over `transport`.

    `zero_tail`: what follows `end` in its page becomes zero. An empty range without slots proves the way and no more.
    """

    job: str
    transport: str
    incarnation: str
    source: Place
    target: Place
    first: int
    end: int
    zero_tail: bool = False


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Answered by Fetched or Failed, as every Fetch is."""

    job: str


class Attend(msgspec.Struct, tag=True, frozen=True):
    """Whether peers read from here now."""

    on: bool


class Stop(msgspec.Struct, tag=True, frozen=True):
    pass


class Serving(msgspec.Struct, tag=True, frozen=True):
    """A transport works, or has begun a new epoch under another address; or not: then `reason` says why."""

    rank: int
    transport: str
    address: bytes = b""
    reason: str = ""
    epoch: int = 0


class Fetched(msgspec.Struct, tag=True, frozen=True):
    rank: int
    job: str
    nbytes: int
    runs: int
    seconds: float


class Failed(msgspec.Struct, tag=True, frozen=True):
    """Over, and no byte of it lands any more. `kind` says what helps: the same again, another transport, or nothing."""

    rank: int
    job: str
    reason: str
    kind: FailureKind


Command = Meet | Forget | Fetch | Cancel | Attend | Stop
Report = Serving | Fetched | Failed
