"""What a prefill engine gives away for a cache it holds: an id, where to ask for it, and a signature over both.

Clients and routers carry tickets and cannot make or change them, so the address in one is as good as configured, and
nothing else a client sends is ever taken for an address. What a ticket stands for (pages, slot, first token) is asked
for over the control channel: it may move between the ticket's making and its use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import struct
from collections.abc import Sequence

import msgspec

from perilune.pd.errors import TicketError
from perilune.pd.keys import MAC_BYTES, ClusterKey

VERSION = 1
_FIX = "Let the router ask a prefill engine again; a ticket is good for one decode engine and a short time."


class Ticket(msgspec.Struct, frozen=True):
    """`id` is new for every attempt. `control` is the prefill engine's control address, `incarnation` its process.

    `ttl` is relative, in seconds: clocks of two hosts are never compared.
    """

    version: int
    id: str
    engine: str
    incarnation: str
    control: str
    tokens: int
    prompt: bytes
    tables: str
    ttl: float

    def seal(self, key: ClusterKey) -> str:
        body = msgspec.msgpack.encode(self)
        return base64.urlsafe_b64encode(key.sign("ticket", body) + body).decode()


def new_id() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """What ties a ticket to its prompt: two requests never exchange caches."""
    return hashlib.sha256(struct.pack(f"<{len(tokens)}q", *tokens)).digest()[:16]


def open_ticket(text: str, key: ClusterKey, prompt: Sequence[int] | None = None) -> Ticket:
    """The ticket, if this cluster signed it and it is for `prompt`. Raises TicketError."""
    try:
        sealed = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise TicketError("The ticket is damaged.", str(error), _FIX) from error
    mac, body = sealed[:MAC_BYTES], sealed[MAC_BYTES:]
    if not key.verify("ticket", body, mac):
        raise TicketError("The ticket is not signed with this cluster's key.", "Keys differ, or it was changed.", _FIX)
    try:
        ticket = msgspec.msgpack.decode(body, type=Ticket)
    except msgspec.MsgspecError as error:
        raise TicketError("The ticket is of another form.", str(error), "Update both engines.") from error
    if ticket.version != VERSION:
        raise TicketError(f"The ticket has version {ticket.version}, not {VERSION}.", "", "Update both engines.")
    if prompt is not None and (len(prompt) != ticket.tokens or prompt_digest(prompt) != ticket.prompt):
        raise TicketError("The ticket belongs to another prompt.", f"Its prompt has {ticket.tokens} tokens.", _FIX)
    return ticket
