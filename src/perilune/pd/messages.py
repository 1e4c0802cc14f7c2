"""What two engines say to each other beside the bytes: msgspec structs in msgpack, signed, each to one process.

A message names the process it is for (its incarnation) and has a number that only rises per sender, so that a recorded
message cannot be played back, to a restarted engine neither.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from perilune.pd.commands import Rendezvous
from perilune.pd.compiler import Place
from perilune.pd.keys import MAC_BYTES, ClusterKey

MAX_BYTES = 16 << 20
_SENDERS = 4096


class Description(msgspec.Struct, frozen=True):
    """One engine for others: what it holds, how it is reached, how long its leases are (seconds)."""

    engine: str
    control: str
    rendezvous: Rendezvous
    ttl: float


class Hello(msgspec.Struct, tag=True, frozen=True):
    """Asks for a Welcome. The only message that may be for anybody."""


class Welcome(msgspec.Struct, tag=True, frozen=True):
    description: Description


class Open(msgspec.Struct, tag=True, frozen=True):
    """Claims a ticket for the sender, answered by Manifest or Gone. May be repeated by the same sender."""

    id: str


class Manifest(msgspec.Struct, tag=True, frozen=True):
    """What can be read now: the first `ready` of `tokens` tokens, in whole pages until `sealed`.

    Sealed, it has the slot with the state after the last token, and `payload`, which only engines understand: the first
    sampled token. Sent again whenever more is ready; a later one includes all earlier ones.
    """

    id: str
    tokens: int
    ready: int
    sealed: bool
    place: Place
    payload: bytes = b""


class Gone(msgspec.Struct, tag=True, frozen=True):
    """There is no such lease for the receiver, or no more."""

    id: str
    reason: str


class Renew(msgspec.Struct, tag=True, frozen=True):
    ids: tuple[str, ...]


class Renewed(msgspec.Struct, tag=True, frozen=True):
    """Which of the ids are alive. The others were answered with Gone."""

    ids: tuple[str, ...]


class Release(msgspec.Struct, tag=True, frozen=True):
    """All is read. Answered by Verdict; may be repeated."""

    id: str


class Verdict(msgspec.Struct, tag=True, frozen=True):
    """`valid`: the lease was held without a break until the first Release, so what was read before it may be used."""

    id: str
    valid: bool


class Abandon(msgspec.Struct, tag=True, frozen=True):
    """The ticket will not be used. Needs no answer: a lease that is not renewed ends by itself."""

    id: str
    reason: str


class Stranger(msgspec.Struct, tag=True, frozen=True):
    """The message was for another process; this one has taken its address."""

    incarnation: str


Body = (
    Hello | Welcome | Open | Manifest | Gone | Renew | Renewed | Release | Verdict | Abandon | Stranger
)  # fmt: skip


class Envelope(msgspec.Struct, frozen=True):
    """`to` is empty only for Hello and for what answers it."""

    sender: str
    to: str
    number: int
    body: Body


class Post:
    """Signs what goes out and checks what comes in, for one process. Belongs to one thread."""

    def __init__(self, key: ClusterKey, incarnation: str) -> None:
        self._key, self._incarnation = key, incarnation
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Envelope).decode
        self._sent = 0
        self._seen: OrderedDict[str, int] = OrderedDict()
        self.refused = 0

    def pack(self, to: str, body: Body) -> bytes:
        self._sent += 1
        text = self._encode(Envelope(self._incarnation, to, self._sent, body))
        return self._key.sign("control", text) + text

    def unpack(self, message: bytes) -> Envelope | None:
        """None, and counted, for what is forged, damaged or played back."""
        mac, text = message[:MAC_BYTES], message[MAC_BYTES:]
        if not self._key.verify("control", text, mac):
            self.refused += 1
            return None
        try:
            envelope = self._decode(text)
        except msgspec.MsgspecError:
            self.refused += 1  # signed, but of another version
            return None
        if envelope.number <= self._seen.get(envelope.sender, 0):
            self.refused += 1
            return None
        self._seen[envelope.sender] = envelope.number
        self._seen.move_to_end(envelope.sender)
        if len(self._seen) > _SENDERS:
            self._seen.popitem(last=False)
        return envelope

    def for_us(self, envelope: Envelope) -> bool:
        return envelope.to == self._incarnation or isinstance(envelope.body, Hello | Stranger)
