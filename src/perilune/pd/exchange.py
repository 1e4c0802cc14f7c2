"""An engine's door for caches, going out and coming in. The engine loop calls it and never waits.

A control thread speaks to other engines and keeps leases and receptions; each rank's movers copy. What the engine must
know comes back as events; `fileno` wakes a loop that sleeps.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import zmq

from perilune.errors import ConfigError
from perilune.pd.bell import Bell
from perilune.pd.borrower import Borrower, Wanted
from perilune.pd.commands import Attend, Rendezvous, Report, Serving
from perilune.pd.compiler import Place
from perilune.pd.counters import Counters
from perilune.pd.errors import MismatchError, TicketError, TransportError
from perilune.pd.keys import ClusterKey
from perilune.pd.leases import LeaseBook
from perilune.pd.lender import Lender
from perilune.pd.messages import MAX_BYTES, Description, Post
from perilune.pd.rank import Rank
from perilune.pd.regions import digest, flaws
from perilune.pd.settings import Event, PdSettings
from perilune.pd.ticket import VERSION, Ticket, new_id, open_ticket, prompt_digest

log = logging.getLogger(__name__)
START_SECONDS = 60.0
IDLE_SECONDS = 1.0
_REMEMBERED = 4096


class Exchange:
    """One per engine, on its first rank. Methods are for one thread, the engine loop's, and return at once.

    Use `start`, and `close` whatever happens then. Raises MismatchError if the ranks' own tables are flawed.
    """

    def __init__(self, engine: str, key: ClusterKey, ranks: Sequence[Rank], settings: PdSettings) -> None:
        self._tables = tuple(rank.table for rank in ranks)
        if found := flaws(self._tables):
            raise MismatchError("This engine's region tables are flawed.", "\n".join(found))
        self.engine, self.incarnation, self.counters = engine, secrets.token_hex(8), Counters()
        self._key, self._ranks, self._settings = key, ranks, settings
        self._digest = digest(self._tables)
        self._used: OrderedDict[str, None] = OrderedDict()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._inbox_bell, self._outbox_bell = Bell(), Bell()
        self._addresses: dict[str, list[bytes]] = {}
        self._refusals: dict[str, str] = {}
        self._awaited = sum(len(rank.transports) for rank in ranks)
        self._started = threading.Event()
        self._closing = False
        self._attentive = False
        self._post = Post(key, self.incarnation)
        self._thread = threading.Thread(target=self._run, name="pd-control", daemon=True)
        self._open = False

    def _bind(self) -> zmq.Socket[bytes]:
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        for option, value in ((zmq.LINGER, 0), (zmq.MAXMSGSIZE, MAX_BYTES), (zmq.SNDHWM, 10000)):
            router.setsockopt(option, value)
        settings = self._settings
        try:
            port = settings.port or router.bind_to_random_port(f"tcp://{settings.host}")
            if settings.port:
                router.bind(f"tcp://{settings.host}:{port}")
        except zmq.ZMQError as error:
            router.close(linger=0)
            self._context.term()
            raise ConfigError(
                f"Hand-overs cannot listen on {settings.host}:{settings.port}.", f"The system says: {error}.",
                "Choose another pd port.",
            ) from error  # fmt: skip
        self.control = f"tcp://{settings.reachable_host}:{port}"
        return router

    def start(self) -> None:
        """Listen, open all transports and begin to answer.

        Raises ConfigError if nothing can listen on the address, TransportError if not one transport works on every
        rank; then everything is closed again.
        """
        settings, emit = self._settings, self._emit
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = self._bind()
        book = LeaseBook(settings.leases)
        self._lender = Lender(router, self._post, book, self.counters, self._describe, emit)
        self._borrower = Borrower(
            self._context, self._post, self._ranks, lambda: self.transports, settings, self.counters, emit
        )
        self._open = True
        for rank in self._ranks:
            rank.start(lambda report: self._post_in(lambda: self._hear(report)))
        self._thread.start()
        if not self._started.wait(START_SECONDS) or not self.transports:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self._refusals.items())
            self.close()
            raise TransportError("No transport works on every rank.", reasons, "`tcp` works everywhere: allow it.")

    @property
    def transports(self) -> tuple[str, ...]:
        """Those that work on every rank, in the order of preference."""
        return tuple(
            name
            for name in self._settings.transports
            if name in self._addresses and all(self._addresses[name]) and name not in self._refusals
        )

    @property
    def because(self) -> tuple[str, ...]:
        """What serves and why the others do not, for the lines printed at start."""
        refused = tuple(f"no {name}: {reason}" for name, reason in self._refusals.items())
        return (f"caches move by {', '.join(self.transports)}; control at {self.control}", *refused)

    # -- the prefill side ---------------------------------------------------------------------------------------------

    def offer(self, prompt: Sequence[int]) -> tuple[str, str]:
        """(lease, ticket) for a prompt whose pages and slot stay pinned until Unpinned. `seal` must follow, or
        `withdraw`."""
        lease = new_id()
        ticket = Ticket(
            VERSION, lease, self.engine, self.incarnation, self.control, len(prompt), prompt_digest(prompt),
            self._digest, self._settings.leases.ttl,
        )  # fmt: skip
        self.counters.tickets += 1
        self._post_in(lambda: self._lender.book.offer(lease, len(prompt), time.monotonic()))
        return lease, ticket.seal(self._key)

    def progress(self, lease: str, ready: int, pages: Sequence[int]) -> None:
        """The first `ready` tokens, a multiple of the page, are computed: whoever has the ticket may read them now.

        Call it after the step has finished, not after it was launched. Optional.
        """
        place = Place(tuple(pages))
        self._post_in(lambda: self._lender.apply(self._lender.book.progress(lease, ready, place, time.monotonic())))

    def seal(self, lease: str, pages: Sequence[int], slot: int | None, payload: bytes) -> None:
        """All tokens are computed; `slot` holds the state after the last one, now and until Unpinned. `payload` goes to
        the other engine as it is: the first sampled token and what continues from it."""
        place = Place(tuple(pages), slot)
        self._post_in(lambda: self._lender.apply(self._lender.book.seal(lease, place, payload, time.monotonic())))

    def withdraw(self, lease: str) -> None:
        """Take it back. Unpinned follows, unless it came already."""
        self._post_in(lambda: self._lender.apply(self._lender.book.withdraw(lease)))

    # -- the decode side ----------------------------------------------------------------------------------------------

    def check_ticket(self, ticket: str, prompt: Sequence[int] | None) -> Ticket:
        """The ticket, for a request about to be admitted; without `prompt`, of whatever prompt. Raises TicketError."""
        opened = open_ticket(ticket, self._key, prompt)
        if opened.id in self._used:
            self.counters.tickets_refused += 1
            raise TicketError("The ticket was used already.", "A ticket is good for one attempt.", "Ask for a new one.")
        return opened

    def hold(self, ticket: str, prompt: Sequence[int]) -> None:
        """The request has to wait for pages and a slot: its cache is kept meanwhile. `receive` or `refuse` must follow.

        Optional. Raises TicketError.
        """
        opened = self.check_ticket(ticket, prompt)
        self._post_in(lambda: self._borrower.hold(opened))

    def receive(
        self, request: str, ticket: str, prompt: Sequence[int], pages: Sequence[int], slot: int | None, cached: int = 0
    ) -> None:
        """Bring a cache in: `pages` have room for the whole prompt and hold its first `cached` tokens, in whole pages.

        Ends in Arrived or Lost; until then, and until Settled if Lost says so, pages and slot are not to be touched.
        Raises TicketError, and then nothing was begun.
        """
        opened = self.check_ticket(ticket, prompt)
        self._used[opened.id] = None
        if len(self._used) > _REMEMBERED:
            self._used.popitem(last=False)
        wanted = Wanted(request, opened, Place(tuple(pages), slot), cached)
        self._post_in(lambda: self._borrower.want(wanted))

    def refuse(self, ticket: str, prompt: Sequence[int] | None, reason: str) -> None:
        """This engine will not take the request: its cache need not wait. Raises TicketError."""
        opened = self.check_ticket(ticket, prompt)
        self._used[opened.id] = None
        self._post_in(lambda: self._borrower.refuse(opened, reason))

    def abort(self, request: str, reason: str = "aborted") -> None:
        """Ends in Lost, unless Arrived or Lost is on its way."""
        self._post_in(lambda: self._borrower.abort(request, reason))

    # -- both ---------------------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        self._outbox_bell.silence()
        found = []
        while True:
            try:
                found.append(self._outbox.get_nowait())
            except queue.Empty:
                return found

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._outbox_bell.fileno()

    def describe(self) -> Description:
        """What `perilune pd check` compares."""
        return self._describe()

    def close(self) -> bool:
        """Withdraw every lease, abort every reception, end every read. False if a transport could not be ended."""
        if not self._open:
            return True
        self._open = False
        self._post_in(self._begin_closing)
        self._thread.join(self._settings.receptions.drain + START_SECONDS)
        ended = [rank.stop() for rank in self._ranks]
        return all(ended) and not self._thread.is_alive()

    def _begin_closing(self) -> None:
        self._closing = True
        for lease in self._lender.book.ids:
            self._lender.apply(self._lender.book.withdraw(lease))
        self._borrower.abort_all("the engine stops")

    def _run(self) -> None:
        poller = zmq.Poller()
        known: set[zmq.Socket[bytes]] = set()
        poller.register(self._lender.socket, zmq.POLLIN)
        poller.register(self._inbox_bell.fileno(), zmq.POLLIN)
        while not self._closing or self._borrower.busy:
            sockets = set(self._borrower.sockets)
            for socket in known - sockets:
                poller.unregister(socket)
            for socket in sockets - known:
                poller.register(socket, zmq.POLLIN)
            known = sockets
            poller.poll(int(self._timeout() * 1000) + 1)
            try:
                self._turn()
            except Exception:
                log.exception("the control thread goes on after an error that should not have happened")
        self._shut()

    def _timeout(self) -> float:
        times = [t for t in (self._lender.book.deadline, self._borrower.deadline) if t is not None]
        return min(IDLE_SECONDS, max(0.0, min(times) - time.monotonic())) if times else IDLE_SECONDS

    def _turn(self) -> None:
        # Before the engine's own calls are taken in: a ticket may be back as a message before its offer was looked at.
        heard = self._lender.heard()
        self._inbox_bell.silence()
        while True:
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                break
            job()
        self._lender.answer(heard)
        self._borrower.receive()
        self._lender.apply(self._lender.book.expire(time.monotonic()))
        self._borrower.tick()
        self.counters.leases, self.counters.receptions = len(self._lender.book), len(self._borrower)
        self.counters.messages_refused = self._post.refused
        self._attend(self._lender.book.claimed > 0)

    def _attend(self, on: bool) -> None:
        if on != self._attentive:
            self._attentive = on
            for rank in self._ranks:
                for name in rank.transports:
                    rank.send(name, Attend(on))

    def _hear(self, report: Report) -> None:
        if not isinstance(report, Serving):
            self._borrower.report(report)
            return
        addresses = self._addresses.setdefault(report.transport, [b""] * len(self._ranks))
        addresses[report.rank] = report.address
        if report.reason:
            self._refusals[report.transport] = report.reason
        self.counters.resets += report.epoch > 0
        self._awaited -= report.epoch == 0
        if not self._awaited:
            self._started.set()

    def _describe(self) -> Description:
        addresses = {name: tuple(self._addresses[name]) for name in self.transports}
        beacons = tuple(rank.beacon for rank in self._ranks)
        rendezvous = Rendezvous(self.incarnation, self._tables, beacons, addresses)
        return Description(self.engine, self.control, rendezvous, self._settings.leases.ttl)

    def _post_in(self, job: Callable[[], None]) -> None:
        self._inbox.put(job)
        self._inbox_bell.ring()

    def _emit(self, event: Event) -> None:
        self._outbox.put(event)
        self._outbox_bell.ring()

    def _shut(self) -> None:
        self._borrower.close()
        self._lender.socket.close(linger=100)
        self._context.term()
