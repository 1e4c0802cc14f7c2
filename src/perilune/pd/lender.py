"""The prefill side's half of the conversation: answers readers from the lease book, on the control thread."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import zmq

from perilune.pd.counters import Counters
from perilune.pd.leases import Effect, Freed, LeaseBook, Told
from perilune.pd.messages import (
    Abandon,
    Body,
    Description,
    Envelope,
    Hello,
    Open,
    Post,
    Release,
    Renew,
    Renewed,
    Stranger,
    Welcome,
)
from perilune.pd.settings import Event, Unpinned

log = logging.getLogger(__name__)
_READERS = 4096


class Lender:
    """Owns the leases and speaks through the bound socket. `describe` gives what this engine is right now."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        post: Post,
        book: LeaseBook,
        counters: Counters,
        describe: Callable[[], Description],
        emit: Callable[[Event], None],
    ) -> None:
        self.socket, self.book = socket, book
        self._post, self._counters, self._describe, self._emit = post, counters, describe, emit
        self._readers: OrderedDict[str, bytes] = OrderedDict()  # incarnation -> where its last message came from

    def heard(self) -> list[list[bytes]]:
        """Every message that is there, as it came."""
        messages = []
        while self.socket.poll(0):
            messages.append(self.socket.recv_multipart())
        return messages

    def answer(self, messages: list[list[bytes]]) -> None:
        """Answer what was heard."""
        for route, *parts in messages:
            envelope = self._post.unpack(parts[-1]) if parts else None
            if envelope is None:
                continue
            self._readers[envelope.sender] = route
            self._readers.move_to_end(envelope.sender)
            if len(self._readers) > _READERS:
                self._readers.popitem(last=False)
            if self._post.for_us(envelope):
                self._answer(envelope)
            else:
                self._send(envelope.sender, Stranger(self._describe().rendezvous.incarnation))

    def _answer(self, envelope: Envelope) -> None:
        body, reader, now = envelope.body, envelope.sender, time.monotonic()
        if isinstance(body, Hello):
            self._send(reader, Welcome(self._describe()))
        elif isinstance(body, Open):
            answer, effects = self.book.claim(body.id, reader, now)
            self.apply(effects)
            self._send(reader, answer)
        elif isinstance(body, Renew):
            alive, gone, effects = self.book.renew(body.ids, reader, now)
            self.apply(effects)
            self._send(reader, Renewed(alive))
            for notice in gone:
                self._send(reader, notice)
        elif isinstance(body, Release):
            verdict, effects = self.book.release(body.id, reader, now)
            self.apply(effects)
            self._send(reader, verdict)
        elif isinstance(body, Abandon):
            log.info("lease %s was abandoned: %s", body.id, body.reason)
            self.apply(self.book.abandon(body.id, reader, now))

    def apply(self, effects: list[Effect]) -> None:
        """Tell the engine what is free and readers what has changed."""
        for effect in effects:
            if isinstance(effect, Told):
                self._send(effect.reader, effect.message)
            elif isinstance(effect, Freed):
                name = f"leases_{effect.outcome}"
                setattr(self._counters, name, getattr(self._counters, name) + 1)
                self._emit(Unpinned(effect.id, effect.outcome))

    def _send(self, reader: str, body: Body) -> None:
        route = self._readers.get(reader)
        if route is not None:
            self.socket.send_multipart([route, self._post.pack(reader, body)])
