"""The decode side's half of the conversation: meets prefill engines and drives receptions, on the control thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq

from perilune.pd.commands import Cancel, Failed, Fetch, Fetched, Forget, Meet
from perilune.pd.compiler import Place
from perilune.pd.counters import Counters
from perilune.pd.messages import (
    Abandon,
    Body,
    Description,
    Gone,
    Hello,
    Manifest,
    Open,
    Post,
    Release,
    Renew,
    Renewed,
    Stranger,
    Verdict,
    Welcome,
)
from perilune.pd.rank import Rank
from perilune.pd.reception import (
    Action,
    AskOpen,
    AskRelease,
    AskRenew,
    CancelFetch,
    End,
    Fenced,
    Reception,
    StartFetch,
    State,
    TellAbandon,
)
from perilune.pd.regions import RegionTable, differences, digest
from perilune.pd.settings import Arrived, Event, Lost, PdSettings, Settled
from perilune.pd.ticket import Ticket

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A request's cache is to come here: into `place`, whose first `cached` tokens are there already."""

    request: str
    ticket: Ticket
    place: Place
    cached: int


@dataclass
class _Source:
    """One prefill engine, by its control address. `met` is the incarnation that the ranks know; `answer_by` is set
    while it owes an answer to who it is: one that stays silent until then is as good as dead.
    """

    socket: zmq.Socket[bytes]
    used: float
    description: Description | None = None
    met: str = ""
    refusal: str = ""
    answer_by: float | None = None
    waiting: list[tuple[Wanted, float]] = field(default_factory=list)


@dataclass
class _Hold:
    """A ticket whose request waits for a place. `renewal`: when its lease is to be renewed."""

    ticket: Ticket
    source: _Source
    renewal: float


@dataclass
class _Transfer:
    wanted: Wanted
    source: _Source
    reception: Reception
    started: float
    nbytes: int = 0
    transport: str = ""


class Borrower:
    """All receptions of one engine. `ranks` do what they decide; `emit` tells the engine."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        post: Post,
        ranks: Sequence[Rank],
        serving: Callable[[], tuple[str, ...]],
        settings: PdSettings,
        counters: Counters,
        emit: Callable[[Event], None],
    ) -> None:
        self._context, self._post, self._ranks, self._serving = context, post, ranks, serving
        self._settings, self._counters, self._emit = settings, counters, emit
        self._tables: tuple[RegionTable, ...] = tuple(rank.table for rank in ranks)
        self._sources: dict[str, _Source] = {}
        self._transfers: dict[str, _Transfer] = {}  # by request
        self._by_lease: dict[str, _Transfer] = {}
        self._by_job: dict[str, tuple[_Transfer, int, str]] = {}
        self._renewals: dict[str, list[str]] = {}
        self._holds: dict[str, _Hold] = {}  # by lease

    def __len__(self) -> int:
        return len(self._transfers) + sum(len(source.waiting) for source in self._sources.values())

    @property
    def busy(self) -> bool:
        """Whether some request has not ended."""
        states = [transfer.reception.state for transfer in self._transfers.values()]
        return any(source.waiting for source in self._sources.values()) or any(state not in _ENDED for state in states)

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        return [source.socket for source in self._sources.values()]

    def _source(self, address: str, now: float) -> _Source:
        source = self._sources.get(address)
        if source is None:
            source = self._sources[address] = _Source(self._connect(address), now)
        source.used = now
        return source

    def hold(self, ticket: Ticket) -> None:
        """Claim the lease and renew it until `want` or `refuse`. Whether it is alive, `want` will see."""
        now = time.monotonic()
        source = self._source(ticket.control, now)
        self._holds[ticket.id] = _Hold(ticket, source, now + ticket.ttl / 3)
        self._send(source, ticket.incarnation, Open(ticket.id))

    def want(self, wanted: Wanted) -> None:
        now = time.monotonic()
        source = self._source(wanted.ticket.control, now)
        self._holds.pop(wanted.ticket.id, None)
        known = source.description
        if known is not None and known.rendezvous.incarnation == wanted.ticket.incarnation:
            self._begin(wanted, source, known, now)
            return
        source.waiting.append((wanted, now + self._settings.receptions.reply))
        self._ask_who(source, now)

    def _ask_who(self, source: _Source, now: float) -> None:
        source.answer_by = source.answer_by or now + self._settings.receptions.reply
        self._send(source, "", Hello())

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.connect(address)
        return socket

    def _begin(self, wanted: Wanted, source: _Source, known: Description, now: float) -> None:
        ticket, rendezvous = wanted.ticket, known.rendezvous
        refusal = source.refusal
        if rendezvous.incarnation != ticket.incarnation:
            refusal = "the prefill engine was restarted since it gave the ticket"
        elif digest(rendezvous.tables) != ticket.tables:
            refusal = "the ticket was made for other region tables"
        if refusal:
            self._send(source, rendezvous.incarnation, Abandon(ticket.id, refusal))
            self._counters.failures += 1
            self._emit(Lost(wanted.request, refusal, fenced=True))
            return
        table = self._tables[0]
        reception = Reception(
            id=ticket.id,
            ranks=len(self._ranks),
            tokens=ticket.tokens,
            cached=wanted.cached,
            stateful=any(region.pool == "slots" for region in table.regions),
            transports=[name for name in self._serving() if name in rendezvous.addresses],
            times=self._settings.receptions,
            started=now,
            token_bytes=sum(region.item_bytes for region in table.regions if region.pool == "pages"),
            state_bytes=sum(region.place_bytes for region in table.regions if region.pool == "slots"),
        )
        transfer = _Transfer(wanted, source, reception, now)
        self._transfers[wanted.request] = self._by_lease[ticket.id] = transfer
        self._perform(transfer, reception.begin(now))

    def refuse(self, ticket: Ticket, reason: str) -> None:
        """Tell the engine that gave the ticket that nobody will come."""
        self._holds.pop(ticket.id, None)
        source = self._source(ticket.control, time.monotonic())
        self._send(source, ticket.incarnation, Abandon(ticket.id, reason))

    def abort(self, request: str, reason: str) -> None:
        """Ends in Lost, unless Arrived is on its way; of a request that is over, nothing happens."""
        transfer = self._transfers.get(request)
        if transfer is not None:
            self._perform(transfer, transfer.reception.abort(reason, time.monotonic()))
        for source in self._sources.values():
            for entry in [entry for entry in source.waiting if entry[0].request == request]:
                self._drop(source, entry, reason)

    def abort_all(self, reason: str) -> None:
        names = [wanted.request for source in self._sources.values() for wanted, _ in source.waiting]
        for request in [*self._transfers, *names]:
            self.abort(request, reason)

    def _drop(self, source: _Source, entry: tuple[Wanted, float], reason: str) -> None:
        """Give up on a request for which no engine has answered yet."""
        source.waiting.remove(entry)
        self._send(source, entry[0].ticket.incarnation, Abandon(entry[0].ticket.id, reason))
        self._counters.failures += 1
        self._emit(Lost(entry[0].request, reason, fenced=True))

    def receive(self) -> None:
        """Take in every message that is there."""
        for source in list(self._sources.values()):
            while source.socket.poll(0):
                envelope = self._post.unpack(source.socket.recv_multipart()[-1])
                if envelope is not None and self._post.for_us(envelope):
                    self._hear(source, envelope.sender, envelope.body)

    def _hear(self, source: _Source, sender: str, body: Body) -> None:
        now, source.answer_by = time.monotonic(), None
        if isinstance(body, Welcome):
            self._meet(source, body.description, now)
        elif isinstance(body, Stranger):
            source.description = None
            for transfer in self._of(source):
                if transfer.wanted.ticket.incarnation != body.incarnation:
                    self._perform(transfer, transfer.reception.gone("the prefill engine was restarted", now))
        elif isinstance(body, Renewed):
            for id in body.ids:
                self._tell(id, sender, lambda reception: reception.renewed(now))
        elif isinstance(body, Manifest):
            self._tell(body.id, sender, lambda reception: reception.manifest(body, now))
        elif isinstance(body, Gone):
            self._tell(body.id, sender, lambda reception: reception.gone(body.reason, now))
        elif isinstance(body, Verdict):
            self._tell(body.id, sender, lambda reception: reception.verdict(body.valid, now))

    def _tell(self, lease: str, sender: str, event: Callable[[Reception], list[Action]]) -> None:
        transfer = self._by_lease.get(lease)
        if transfer is not None and transfer.wanted.ticket.incarnation == sender:
            self._perform(transfer, event(transfer.reception))

    def _meet(self, source: _Source, description: Description, now: float) -> None:
        old, source.description = source.met, description
        source.met = description.rendezvous.incarnation
        found = differences(self._tables, description.rendezvous.tables)
        source.refusal = f"the engines do not fit together: {'; '.join(found)}" if found else ""
        if found:
            log.error("%s cannot hand over to this engine: %s", description.engine, "; ".join(found))
        else:
            for rank in self._ranks:
                for name in rank.transports:
                    rank.send(name, Meet(description.rendezvous))
                    if old not in ("", source.met):
                        rank.send(name, Forget(old))
        waiting, source.waiting = source.waiting, []
        for wanted, _ in waiting:
            self._begin(wanted, source, description, now)

    def _of(self, source: _Source) -> list[_Transfer]:
        return [transfer for transfer in self._transfers.values() if transfer.source is source]

    def report(self, report: Fetched | Failed) -> None:
        """From a rank: a job is over."""
        known = self._by_job.pop(report.job, None)
        if known is None:
            return
        transfer, now = known[0], time.monotonic()
        if isinstance(report, Fetched):
            transfer.nbytes += report.nbytes
            self._counters.received_bytes += report.nbytes
            self._counters.early_bytes += 0 if transfer.reception.sealed else report.nbytes
            self._counters.descriptors += report.runs
            self._counters.note_rate(report.nbytes, report.seconds)
            actions = transfer.reception.fetched(report.job, now)
        else:
            log.info("%s, rank %d: %s", transfer.wanted.request, report.rank, report.reason)
            actions = transfer.reception.fetch_failed(report.job, report.reason, report.kind, now)
            self._counters.retries += any(isinstance(action, StartFetch) for action in actions)
        self._perform(transfer, actions)

    def tick(self) -> None:
        now = time.monotonic()
        for source in self._sources.values():
            for entry in [entry for entry in source.waiting if entry[1] <= now]:
                self._drop(source, entry, f"no engine answers at {entry[0].ticket.control}")
        for transfer in list(self._transfers.values()):
            deadline = transfer.reception.deadline
            if deadline is not None and deadline <= now:
                self._perform(transfer, transfer.reception.tick(now))
        for hold in self._holds.values():
            if hold.renewal <= now:
                hold.renewal = now + hold.ticket.ttl / 3
                self._send(hold.source, hold.ticket.incarnation, Renew((hold.ticket.id,)))
        for source in self._sources.values():
            self._flush_renewals(source)
        self._part(now)
        states = [transfer for transfer in self._transfers.values() if transfer.reception.state in _QUARANTINED]
        self._counters.quarantined_pages = sum(len(transfer.wanted.place.pages) for transfer in states)

    def _part(self, now: float) -> None:
        """Engines come and go under new addresses: what leads to one that is dead, or not used any more, is closed."""
        busy = {id(transfer.source) for transfer in self._transfers.values()}
        busy |= {id(hold.source) for hold in self._holds.values()}
        for address, source in list(self._sources.items()):
            if id(source) in busy or source.waiting:
                source.used = now
            elif now > (source.answer_by or source.used + self._settings.idle_seconds):
                for rank in self._ranks if source.met else ():
                    for name in rank.transports:
                        rank.send(name, Forget(source.met))
                source.socket.close(linger=0)
                del self._sources[address]

    @property
    def deadline(self) -> float | None:
        """When to call `tick`, at the latest."""
        times = [end for source in self._sources.values() for _, end in source.waiting]
        times += [hold.renewal for hold in self._holds.values()]
        times += [t for transfer in self._transfers.values() if (t := transfer.reception.deadline) is not None]
        return min(times, default=None)

    def _perform(self, transfer: _Transfer, actions: list[Action]) -> None:
        ticket, source = transfer.wanted.ticket, transfer.source
        for action in actions:
            if isinstance(action, AskOpen):
                self._send(source, ticket.incarnation, Open(ticket.id))
            elif isinstance(action, AskRenew):
                self._renewals.setdefault(ticket.incarnation, []).append(ticket.id)
            elif isinstance(action, AskRelease):
                self._send(source, ticket.incarnation, Release(ticket.id))
            elif isinstance(action, TellAbandon):
                self._send(source, ticket.incarnation, Abandon(ticket.id, action.reason))
            elif isinstance(action, StartFetch):
                self._fetch(transfer, action)
            elif isinstance(action, CancelFetch):
                known = self._by_job.get(action.job)
                if known is not None:
                    self._ranks[known[1]].send(known[2], Cancel(action.job))
            elif isinstance(action, End):
                self._finish(transfer, action)
            else:
                assert isinstance(action, Fenced)
                self._emit(Settled(transfer.wanted.request))
        if transfer.reception.over:
            self._transfers.pop(transfer.wanted.request, None)
            self._by_lease.pop(ticket.id, None)

    def _flush_renewals(self, source: _Source) -> None:
        if source.description is not None:
            incarnation = source.description.rendezvous.incarnation
            if ids := self._renewals.pop(incarnation, None):
                self._send(source, incarnation, Renew(tuple(ids)))

    def _fetch(self, transfer: _Transfer, action: StartFetch) -> None:
        place = transfer.wanted.place
        target = place if action.last else Place(place.pages)
        self._by_job[action.job] = (transfer, action.rank, action.transport)
        transfer.transport = action.transport
        self._ranks[action.rank].send(
            action.transport,
            Fetch(
                action.job, action.transport, transfer.wanted.ticket.incarnation, action.source, target,
                action.first, action.end, action.last,
            ),
        )  # fmt: skip

    def _finish(self, transfer: _Transfer, end: End) -> None:
        wanted, seconds = transfer.wanted, time.monotonic() - transfer.started
        if end.ok:
            self._counters.transfers += 1
            self._counters.transfer_seconds += seconds
            self._emit(
                Arrived(wanted.request, end.payload, wanted.ticket.tokens, transfer.nbytes, seconds, transfer.transport)
            )
        else:
            transfer.source.description = None
            self._ask_who(transfer.source, time.monotonic())  # before the next request, and whether anybody is there
            self._counters.failures += 1
            self._emit(Lost(wanted.request, end.reason, end.fenced))

    def _send(self, source: _Source, to: str, body: Body) -> None:
        source.socket.send(self._post.pack(to, body))

    def close(self) -> None:
        for source in self._sources.values():
            source.socket.close(linger=100)


_QUARANTINED = (State.draining, State.failed)
_ENDED = (State.ready, State.failed)
