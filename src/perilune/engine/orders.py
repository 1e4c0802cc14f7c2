"""What the first rank of a tensor-parallel engine tells the others: msgspec structs in msgpack, never pickle.

Orders are obeyed one after another. Tensors do not travel here: an order says which exchange of `RankGroup` follows.
"""

from __future__ import annotations

import msgspec

from perilune.engine.config import EngineConfig
from perilune.engine.messages import WireError
from perilune.nn.batch import Piece


class Load(msgspec.Struct, tag=True, frozen=True):
    """The first order: which engine, from which resolved folder, as which rank."""

    config: EngineConfig
    path: str
    rank: int


class Join(msgspec.Struct, tag=True, frozen=True):
    """All ranks have loaded: connect with each other through a file in `folder`."""

    folder: str


class Run(msgspec.Struct, tag=True, frozen=True):
    """One step; sums follow."""

    pieces: tuple[Piece, ...]


class Head(msgspec.Struct, tag=True, frozen=True):
    """Logits of `rows` rows, which are sent first."""

    rows: int


class Record(msgspec.Struct, tag=True, frozen=True):
    """Record decode steps of `sizes` sequences of up to `context` tokens; sums follow, and are recorded with them."""

    sizes: tuple[int, ...]
    context: int


class Settle(msgspec.Struct, tag=True, frozen=True):
    """The warm-up is over."""

    eager: bool


class Clear(msgspec.Struct, tag=True, frozen=True):
    slot: int


class Restore(msgspec.Struct, tag=True, frozen=True):
    source: int
    slot: int


class ReadState(msgspec.Struct, tag=True, frozen=True):
    """Send the bytes of a row of the slot arena."""

    row: int


class WriteState(msgspec.Struct, tag=True, frozen=True):
    """Receive the bytes of a row of the slot arena."""

    row: int


class WritePage(msgspec.Struct, tag=True, frozen=True):
    """Receive the bytes of a page, the same on every rank."""

    page: int


class OpenDoor(msgspec.Struct, tag=True, frozen=True):
    """Other engines may read this rank's arenas, and this rank theirs; the first rank says what at `endpoint`."""

    endpoint: str
    model: str


class Stop(msgspec.Struct, tag=True, frozen=True):
    pass


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """A rank's first answer: bytes it holds."""

    weight_bytes: int
    cache_bytes: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """A rank's last answer."""

    error: WireError


Order = (
    Load | Join | Run | Head | Record | Settle | Clear | Restore | ReadState | WriteState | WritePage | OpenDoor | Stop
)
Answer = Loaded | Failed
