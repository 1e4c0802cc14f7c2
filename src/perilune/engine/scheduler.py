"""Who runs in the next step, with how many tokens. Pure: integers in, decisions out; imports no torch.

Rules
* First come, first served: a request is admitted only when everything before it has been. Nobody is overtaken, so
  nobody starves.
* Admission takes pages for all known tokens at once. Only decoding grows, one page at a time.
* When a page is missing, the youngest running request is preempted: it returns its pages and slot, keeps what it
  generated, and goes back to the head of the queue. The oldest request can always take what it needs, so the pool
  cannot deadlock; a request that could never fit alone was refused at the door.
* What the prefix cache has of a prompt is not computed: prefill starts where reuse ends, a multiple of 64 before the
  last token. Rows for new snapshots are taken last, from what nobody could run in.
* A sequence whose places another engine reads or writes (`pinned`) is never preempted. A decoder that finds no page
  because of it waits for a step: every such hold ends by a deadline.
* A prompt is cut only at multiples of 64 tokens. A resumed request prefills its prompt with the same cuts and then
  replays its own tokens in decode mode, so it continues with the bits it would have had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.manager import CacheManager

REPLAY_TOKENS = 64


@dataclass
class Sequence:
    """One sequence on its way. `computed` tokens of prompt + outputs are in the cache.

    `cached`: how many of the prompt's were there already when it was first admitted. `reusable`: the most of them that
    may come from the cache, if there is a limit. `salt` and `marks` are the cache's: whose prefixes it shares, and
    where the client wants a state kept. `remote`: its prompt's cache is to come from another engine, and nothing is
    computed before that has ended. `lent`: another engine may read its cache while it is being computed.
    """

    id: str
    prompt: tuple[int, ...]
    outputs: list[int] = field(default_factory=list)
    computed: int = 0
    preemptions: int = 0
    cached: int = 0
    reusable: int | None = None
    salt: bytes = b""
    marks: tuple[int, ...] = ()
    remote: bool = False
    lent: bool = False

    @property
    def pinned(self) -> bool:
        return self.remote or self.lent

    @property
    def known(self) -> int:
        return len(self.prompt) + len(self.outputs)

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.prompt)

    def tokens(self, start: int, count: int) -> list[int]:
        """Tokens [start, start + count) of prompt followed by outputs."""
        split = len(self.prompt)
        end = start + count
        return [*self.prompt[start:end], *self.outputs[max(0, start - split) : max(0, end - split)]]


@dataclass(frozen=True)
class Work:
    """`count` tokens of `sequence` from `start`. `samples`: its last row yields the next token.

    `exports`: (tokens from `start`, row of the slot arena) for every state to be kept on the way.
    """

    sequence: Sequence
    start: int
    count: int
    mode: Literal["prefill", "decode"]
    samples: bool
    exports: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Step:
    work: tuple[Work, ...]
    admitted: tuple[Sequence, ...]
    preempted: tuple[Sequence, ...]


class Scheduler:
    """Owns the queue and the running list; the CacheManager owns the books of pages and slots."""

    def __init__(self, cache: CacheManager, prefill_chunk: int) -> None:
        self.cache = cache
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, sound: bool = True) -> None:
        """Finish or abort at any moment: whatever it holds goes back. Not `sound`: a step failed half way."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.cache.free(sequence.id, sequence.computed if sound else 0)
        else:
            self.waiting.remove(sequence)

    def detach(self, sequence: Sequence) -> None:
        """It runs no more, and what it holds in the cache stays held: another engine reads it, or writes to it."""
        self.running.remove(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """It runs no more and holds nothing: to be admitted again, before all others."""
        self.running.remove(sequence)
        sequence.computed = 0
        self.waiting.appendleft(sequence)

    def schedule(self) -> Step:
        """Decide one step. The work of one step fits `prefill_chunk` prompt tokens plus one token per decoder."""
        preempted: list[Sequence] = []
        decoding = self._decoders(preempted)
        prefill, budget = self._prefills(self.running, self.prefill_chunk)
        admitted = self._admit(budget, after_preemption=bool(preempted))
        prefill += self._prefills(admitted, budget)[0]
        prefill = [replace(w, exports=self.cache.exports(w.sequence.id, w.start, w.count)) for w in prefill]
        return Step((*prefill, *decoding), tuple(admitted), tuple(preempted))

    def commit(self, step: Step) -> None:
        """The step ran: its tokens are in the cache."""
        for work in step.work:
            work.sequence.computed = work.start + work.count
            if work.mode == "prefill":
                self.cache.commit(work.sequence.id, work.sequence.computed)

    def _decoders(self, preempted: list[Sequence]) -> list[Work]:
        """One piece per running request past its prompt, oldest first; makes room by preempting from the young end."""
        works: list[Work] = []
        for sequence in list(self.running):
            if sequence.prefilling or sequence not in self.running:
                continue
            count = min(sequence.known - sequence.computed, REPLAY_TOKENS)
            end = sequence.computed + count
            if self._grow(sequence, end, preempted):
                works.append(Work(sequence, sequence.computed, count, "decode", samples=end == sequence.known))
        return works

    def _grow(self, sequence: Sequence, end: int, preempted: list[Sequence]) -> bool:
        """Whether `sequence` has pages for `end` tokens now, taken from the youngest if need be."""
        while not self.cache.grow(sequence.id, end):
            victim = self._victim(sequence)
            if victim is None:
                return False
            self._preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _victim(self, sequence: Sequence) -> Sequence | None:
        """Who makes room for `sequence`: the youngest. Not itself, if waiting will do; None then."""
        victim = next(other for other in reversed(self.running) if not other.pinned)
        held = self.cache.holders > sum(not other.pinned for other in self.running)
        return None if victim is sequence and held else victim

    def _preempt(self, sequence: Sequence) -> None:
        self.cache.free(sequence.id, sequence.computed)
        self.requeue(sequence)
        sequence.preemptions += 1

    def _prefills(self, sequences: Iterable[Sequence], budget: int) -> tuple[list[Work], int]:
        works = []
        for sequence in sequences:
            if not sequence.prefilling or sequence.remote or budget <= 0:
                continue
            count = min(len(sequence.prompt) - sequence.computed, budget)
            budget -= -(-count // PAGE_TOKENS) * PAGE_TOKENS
            last = sequence.computed + count == sequence.known
            works.append(Work(sequence, sequence.computed, count, "prefill", samples=last))
        return works, budget

    def _admit(self, budget: int, after_preemption: bool) -> list[Sequence]:
        admitted: list[Sequence] = []
        while self.waiting and budget > 0 and not after_preemption:
            # One token beyond what is known, so that a resumed request can take its next step; and a page of headroom
            # for each request already running, so that the newcomer is not preempted at once.
            head = self.waiting[0]
            room = head.known + 1 + PAGE_TOKENS * len(self.running)
            if not self.cache.can_admit(room, head.prompt, head.salt, head.reusable, head.remote):
                break
            self.waiting.popleft()
            self.cache.admit(head.id, head.known + 1, head.prompt, head.salt, head.marks, head.reusable, head.remote)
            head.computed = self.cache.cached(head.id)
            if not head.preemptions:
                head.cached = head.computed
            self.running.append(head)
            admitted.append(head)
            if not head.remote:
                budget -= -(-(len(head.prompt) - head.computed) // PAGE_TOKENS) * PAGE_TOKENS
        return admitted
