"""How one engine takes part in hand-overs, and what it tells the engine loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from perilune.errors import ConfigError, nearest
from perilune.pd.leases import LeaseTimes, Outcome
from perilune.pd.reception import ReceptionTimes

TRANSPORTS = ("nixl", "local", "tcp")


@dataclass(frozen=True)
class PdSettings:
    """`host` is listened on, `advertise` told to others; port 0 takes any free one.

    `transports` are tried in this order. `drain_seconds`: how long reads that were given up may go on before the peer,
    and then the transport, is given up too. Of a prefill engine that nothing came from for `idle_seconds` nothing is
    kept. Raises ConfigError for an unknown transport.
    """

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    transports: tuple[str, ...] = TRANSPORTS
    leases: LeaseTimes = field(default_factory=LeaseTimes)
    receptions: ReceptionTimes = field(default_factory=ReceptionTimes)
    drain_seconds: float = 5.0
    idle_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in self.transports:
            if name not in TRANSPORTS:
                raise ConfigError(f"{name!r} is no transport.", "", nearest(name, TRANSPORTS))
        if not self.transports:
            raise ConfigError("No transport is left.", "", f"Choose from {', '.join(TRANSPORTS)}.")

    @property
    def reachable_host(self) -> str:
        return self.advertise or self.host


@dataclass(frozen=True)
class Arrived:
    """Tokens [cached, tokens) and the state are in the request's pages and slot, byte for byte, and may be used."""

    request: str
    payload: bytes
    tokens: int
    nbytes: int
    seconds: float
    transport: str


@dataclass(frozen=True)
class Lost:
    """Nothing of what may have arrived is to be used. If not `fenced`, nor are pages and slot before Settled."""

    request: str
    reason: str
    fenced: bool


@dataclass(frozen=True)
class Settled:
    """Pages and slot of a request that was Lost without a fence are nobody else's any more."""

    request: str


@dataclass(frozen=True)
class Unpinned:
    """The lease has ended: its pages and slot may be let go."""

    lease: str
    outcome: Outcome


Event = Arrived | Lost | Settled | Unpinned
