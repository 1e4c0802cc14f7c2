"""One engine's part in hand-overs: what the loop does with an Exchange, and what the Exchange's events do to requests.

Lending. A request with Lend is prefilled as any other. When its first token is drawn its cache is sealed and stays
held, the state as it is, until the lease has ended; the request itself is over. With `early` the lease begins at
admission, and what happens to it happens to the request.

Borrowing. A request with Borrow is admitted as any other and computes nothing (`Sequence.remote`) until its cache is
there, or is lost. Then it goes on at token 2; or it gives everything back and is queued again as an ordinary request;
or it ends in an error. Places that somebody may still write to are held until nobody can.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from perilune.cache.geometry import pages_for
from perilune.cache.manager import CacheManager
from perilune.cache.snapshots import floor_page
from perilune.engine.messages import Submit
from perilune.engine.request import Borrow, Lend, Lent, SamplingParams, TokenLogprobs
from perilune.engine.roles import RoleConfig
from perilune.engine.scheduler import Scheduler, Sequence
from perilune.errors import UnsupportedError
from perilune.pd.errors import LostError, NotLentError, TicketError
from perilune.pd.exchange import Exchange
from perilune.pd.settings import Arrived, Settled, Unpinned

log = logging.getLogger(__name__)


class FirstToken(msgspec.Struct, frozen=True):
    """What goes with a cache: the first token as it was drawn, and what the rest of the answer depends on.

    `cached` prompt tokens were in the prefill engine's own cache. `params` is a hash of how the token was drawn,
    `computed_by` of what computed the cache.
    """

    token: TokenLogprobs
    seed: int
    cached: int
    params: bytes
    computed_by: bytes


@dataclass(frozen=True)
class Here:
    """The cache of `sequence` has arrived: its answer begins with `first`."""

    sequence: Sequence
    first: FirstToken


@dataclass(frozen=True)
class Elsewhere:
    """The cache of `sequence` did not arrive. It is queued again if `error` is None, else at its end."""

    sequence: Sequence
    error: LostError | None


@dataclass(frozen=True)
class Recalled:
    """The lease on `sequence`, whose prompt is still being computed, has ended: nobody waits for it."""

    sequence: Sequence


Outcome = Here | Elsewhere | Recalled


@dataclass
class _Loan:
    sequence: Sequence
    lent: Lent
    running: bool = True


class Handover:
    """Belongs to the engine loop's thread, like the scheduler and the manager it acts on."""

    def __init__(
        self, config: RoleConfig, exchange: Exchange, computed_by: bytes, cache: CacheManager, scheduler: Scheduler
    ) -> None:
        self.config, self.exchange, self.key_name = config, exchange, config.key().name
        self._computed_by, self._cache, self._scheduler = computed_by, cache, scheduler
        self._loans: dict[str, _Loan] = {}  # by lease
        self._lease: dict[str, str] = {}  # of a sequence that is lent while it runs
        self._coming: dict[str, tuple[Sequence, Submit]] = {}
        self._held: dict[str, str] = {}  # what is to be freed when a transfer nobody waits for has ended

    def check(self, request: Submit) -> None:
        """Before a request is queued. While it waits its cache is kept: `receive`, `forget` or `turn_away` must follow.

        Raises UnsupportedError, NotLentError or TicketError.
        """
        asked, params = request.handover, request.params
        if asked is None:
            return
        if not (self.config.lends if isinstance(asked, Lend) else self.config.borrows):
            raise UnsupportedError(f"An engine of the role {self.config.role} does not do this.")
        why = ""
        if params.n != 1:
            why = "Several answers need several caches."
        elif params.max_tokens == 0:
            why = "It asks for no token."
        elif params.prompt_logprobs is not None:
            why = "Log probabilities of the prompt do not travel."
        if why:
            raise NotLentError("The request cannot be divided.", why, "Send it to a decode engine, without a ticket.")
        if isinstance(asked, Borrow):
            self.exchange.hold(asked.ticket, request.prompt)

    def turn_away(self, request: Submit, reason: str) -> None:
        """This engine will not serve `request`: whoever keeps its cache need not wait."""
        if isinstance(request.handover, Borrow):
            with contextlib.suppress(TicketError):
                self.exchange.refuse(request.handover.ticket, request.prompt, reason)

    def withdraw(self, ticket: str, reason: str) -> None:
        """Nobody will use `ticket`, of this engine's or another's. What is no ticket is ignored."""
        with contextlib.suppress(TicketError):
            opened = self.exchange.check_ticket(ticket, None)
            if opened.incarnation == self.exchange.incarnation:
                self.exchange.withdraw(opened.id)
            else:
                self.exchange.refuse(ticket, None, reason)

    # -- lending ------------------------------------------------------------------------------------------------------

    def lends_early(self, request: Submit) -> bool:
        return isinstance(request.handover, Lend) and request.handover.early and self.config.stream

    def offer(self, sequence: Sequence) -> Lent:
        """`sequence` was admitted, and may be read from now on as it grows."""
        lease, lent = self._offer(sequence)
        self._lease[sequence.id] = lease
        sequence.lent = True
        self.progress([sequence])
        return lent

    def _offer(self, sequence: Sequence) -> tuple[str, Lent]:
        lease, ticket = self.exchange.offer(sequence.prompt)
        lent = Lent(ticket, self.exchange.engine, len(sequence.prompt))
        self._loans[lease] = _Loan(sequence, lent)
        return lease, lent

    def progress(self, sequences: Iterable[Sequence]) -> None:
        """A step has finished: what these have in whole pages may be read."""
        for sequence in sequences:
            ready = floor_page(sequence.computed)
            if sequence.lent and sequence.prefilling and ready:
                self.exchange.progress(self._lease[sequence.id], ready, self._pages(sequence, ready))

    def seal(self, sequence: Sequence, request: Submit, token: TokenLogprobs) -> Lent | None:
        """All of the prompt is computed and `token` drawn. The answer, unless it was given at the offer.

        The sequence runs no more, and its slot does not change until the lease has ended.
        """
        lease, lent = self._lease.pop(sequence.id, None), None
        if lease is None:
            lease, lent = self._offer(sequence)
        first = FirstToken(token, request.seed, sequence.cached, _drawn_with(request.params), self._computed_by)
        pages = self._pages(sequence, len(sequence.prompt))
        self.exchange.seal(lease, pages, self._cache.slot(sequence.id), msgspec.msgpack.encode(first))
        self._scheduler.detach(sequence)
        self._loans[lease].running = False
        return lent

    def recall(self, sequence: Sequence) -> None:
        """A lent sequence is not to go on. Recalled follows."""
        self.exchange.withdraw(self._lease[sequence.id])

    def abandon(self, sequence: Sequence) -> None:
        """A step of a lent sequence failed: what it holds is of no use and is freed when nobody reads it."""
        lease = self._lease.pop(sequence.id)
        self._scheduler.detach(sequence)
        self._loans[lease].running = False
        sequence.computed = 0
        self.exchange.withdraw(lease)

    def _pages(self, sequence: Sequence, tokens: int) -> list[int]:
        return self._cache.pages(sequence.id)[: pages_for(tokens)]

    # -- borrowing ----------------------------------------------------------------------------------------------------

    def receive(self, sequence: Sequence, request: Submit) -> None:
        """`sequence` was admitted: its cache may come. Raises TicketError, if another request was faster."""
        assert isinstance(request.handover, Borrow)
        cached, slot = self._cache.cached(sequence.id), self._cache.slot(sequence.id)
        sequence.computed = 0  # what is here is in pages, and only that
        self.exchange.receive(
            sequence.id, request.handover.ticket, sequence.prompt, self._pages(sequence, len(sequence.prompt)), slot,
            cached,
        )  # fmt: skip
        self._coming[sequence.id] = (sequence, request)

    def forget(self, sequence: Sequence, request: Submit) -> None:
        """The client of a remote sequence is gone. What it holds is freed when nobody writes to it any more."""
        if self._coming.pop(sequence.id, None) is None:
            self._scheduler.remove(sequence)
            self.turn_away(request, "the client is gone")
            return
        self._scheduler.detach(sequence)
        self._held[sequence.id] = sequence.id
        self.exchange.abort(sequence.id, "the client is gone")

    # -- what happens -------------------------------------------------------------------------------------------------

    def outcomes(self) -> list[Outcome]:
        """What has become of requests since the last call. What concerns only the cache's books is done."""
        found: list[Outcome] = []
        for event in self.exchange.events():
            if isinstance(event, Unpinned):
                found += self._unpinned(event)
            elif isinstance(event, Settled):
                self._cache.free(self._held.pop(event.request))
            elif event.request in self._coming:
                sequence, request = self._coming.pop(event.request)
                if isinstance(event, Arrived):
                    found.append(self._arrived(event, sequence, request))
                else:
                    found.append(self._lost(sequence, request, event.reason, event.fenced))
            elif isinstance(event, Arrived) or event.fenced:
                self._cache.free(self._held.pop(event.request))
        return found

    def _unpinned(self, event: Unpinned) -> list[Outcome]:
        loan = self._loans.pop(event.lease)
        log.debug("%s: its lease was %s", loan.sequence.id, event.outcome)
        if loan.running:
            del self._lease[loan.sequence.id]
            loan.sequence.lent = False
            return [Recalled(loan.sequence)]
        self._cache.free(loan.sequence.id, loan.sequence.computed)
        return []

    def _arrived(self, event: Arrived, sequence: Sequence, request: Submit) -> Outcome:
        try:
            first = msgspec.msgpack.decode(event.payload, type=FirstToken)
        except msgspec.MsgspecError as error:
            return self._lost(sequence, request, f"the prefill engine says something else: {error}", fenced=True)
        if first.params != _drawn_with(request.params):
            return self._lost(sequence, request, "the first token was drawn by other parameters", fenced=True)
        sequence.remote, sequence.computed, sequence.cached = False, event.tokens, first.cached
        if first.computed_by == self._computed_by:  # or a warm run would differ from a cold one in the last bits
            self._cache.commit(sequence.id, event.tokens)
        log.debug("%s: %d bytes by %s in %.4f s", sequence.id, event.nbytes, event.transport, event.seconds)
        return Here(sequence, first)

    def _lost(self, sequence: Sequence, request: Submit, reason: str, fenced: bool) -> Outcome:
        """Nothing that may have arrived is used: whoever goes on from here starts with other places."""
        assert isinstance(request.handover, Borrow)
        log.warning("%s: its cache did not arrive: %s", sequence.id, reason)
        if fenced:
            self._cache.free(sequence.id)
        else:
            self._held[sequence.id] = f"{sequence.id} in quarantine"
            self._cache.rename(sequence.id, self._held[sequence.id])
        if (request.handover.fallback or self.config.fallback) == "prefill":
            self.exchange.counters.local_fallbacks += 1
            sequence.remote = False
            self._scheduler.requeue(sequence)
            return Elsewhere(sequence, None)
        self._scheduler.detach(sequence)
        return Elsewhere(
            sequence, LostError("The prompt's cache did not arrive.", f"{reason}.", "Send the request again.")
        )

    @property
    def lending(self) -> int:
        return len(self._loans)

    @property
    def receiving(self) -> int:
        return len(self._coming) + len(self._held)

    def close(self) -> bool:
        """False if somebody may still write to the arenas: they must outlive this process's threads then."""
        return self.exchange.close()


def _drawn_with(params: SamplingParams) -> bytes:
    """All that the first token depends on, beside the prompt and the seed. The answer's length is not part of it."""
    same = replace(params, max_tokens=None, seed=None)
    return hashlib.sha256(msgspec.msgpack.encode(same, order="deterministic")).digest()[:16]
