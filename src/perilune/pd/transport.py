"""What a transport must be able to do, and no more: read another process's pools into this one's.

One thread owns a transport and calls everything but `wake`. An operation that is `done` or `failed` is over: not a
byte lands for it any more. Reading the same bytes again is always safe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from perilune.pd.compiler import Runs
from perilune.pd.memory import Memory


@dataclass(eq=False)
class Operation:
    """One read under way. `error` says why a `failed` one failed."""

    peer: Peer
    runs: Runs
    state: Literal["moving", "done", "failed"] = "moving"
    error: str = ""

    @property
    def over(self) -> bool:
        return self.state != "moving"

    def fail(self, error: str) -> None:
        if not self.over:
            self.state, self.error = "failed", error


@dataclass(eq=False)
class Peer:
    """A way to one rank of another engine. Transports keep what they need in subclasses."""

    operations: list[Operation] = field(default_factory=list)

    def settle(self) -> None:
        """Forget operations that are over."""
        self.operations = [operation for operation in self.operations if not operation.over]


class Transport(ABC):
    """Reads peers' memory into `memory` and lets peers read it. Constructing one raises TransportError if this host
    cannot use it, with the reason.

    `batch_bytes` is how much one read should ask for: enough for full speed, and little enough that a cancelled pull
    is over soon. `window` reads to one peer keep the way full. For `grace_seconds` after a failed operation bytes may
    still land, for all that is known.
    """

    name: ClassVar[str]
    batch_bytes: ClassVar[int]
    window: ClassVar[int]
    grace_seconds: ClassVar[float] = 0.0

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.attentive = False  # peers read from here now: some transports must look more often then

    @property
    @abstractmethod
    def address(self) -> bytes:
        """What a peer's `connect` needs. Not secret, not to be trusted from anywhere but the control channel."""

    @abstractmethod
    def connect(self, address: bytes) -> Peer:
        """Prepare to read from a peer; never waits for it. Raises TransportError if the address leads nowhere."""

    @abstractmethod
    def read(self, peer: Peer, runs: Runs) -> Operation:
        """Start copying. Raises PlanError for a target outside `memory`; the source's bounds are its own to check."""

    @abstractmethod
    def poll(self, timeout: float) -> None:
        """Move operations on, serve peers; waits at most `timeout` seconds if there is nothing to do."""

    @abstractmethod
    def wake(self) -> None:
        """End a `poll` that waits. From any thread."""

    @abstractmethod
    def disconnect(self, peer: Peer) -> bool:
        """Give the peer up. True if all its operations are over now; False if only `close` can end them."""

    @abstractmethod
    def close(self) -> None:
        """The last fence: when it returns, no operation writes to `memory` any more. Harmless when repeated."""


Factory = Callable[[Memory], Transport]
