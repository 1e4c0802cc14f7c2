"""The engine itself: requests in, token events out, one step at a time. Runs in its own process under the server."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from perilune.cache.manager import CacheManager
from perilune.cache.tier import Rate
from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.device import open_device
from perilune.engine.door import FrontDoor
from perilune.engine.grammars import GrammarQueue
from perilune.engine.graphs import Capture, capture_on, decode_sizes
from perilune.engine.handover import Elsewhere, FirstToken, Handover, Here
from perilune.engine.limits import Limits
from perilune.engine.messages import Submit, TokenEvent, WireError
from perilune.engine.ranked import open_runner
from perilune.engine.request import Borrow, FinishReason, Lend, TokenLogprobs
from perilune.engine.room import check_room
from perilune.engine.sampler import Constraint, Sampler, sample_rows
from perilune.engine.scheduler import Scheduler, Sequence, Step, Work
from perilune.engine.scores import PromptScores
from perilune.engine.status import RouterStatus
from perilune.engine.threads import set_threads
from perilune.engine.tiers import open_tiers
from perilune.engine.view import View, requests_of
from perilune.engine.warm import warm_up
from perilune.errors import EngineDeadError, OverloadedError, PeriluneError, RequestError, UnsupportedError
from perilune.models.checkpoint import Checkpoint
from perilune.nn.batch import Piece
from perilune.text.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclass
class _Active:
    """A submitted sequence with everything the scheduler need not know."""

    sequence: Sequence
    request: Submit
    sampler: Sampler
    max_new: int
    scores: PromptScores | None
    looked_up: bool = False
    remote: bool | None = None


class _Ending(NamedTuple):
    """Why a sequence ends, the stop token that was asked for, whether the last token ends the turn and is no text."""

    finish: FinishReason | None
    stop_token: int | None = None
    ends_turn: bool = False


class EngineCore:
    """Model, caches, queue. Not thread-safe: one caller steps it."""

    def __init__(self, config: EngineConfig, path: Path) -> None:
        threads, why = set_threads(config.threads, config.tp)
        checkpoint = Checkpoint.open(path)
        checkpoint.check()
        self.config, self.spec = config, checkpoint.spec
        self.plan = plan_engine(config, self.spec)
        self.limits = Limits.of(self.spec, self.plan)
        device, device_why = open_device(config.device, 0, config.tp)
        room = check_room(config, checkpoint, self.plan, device)
        self.tokenizer = load_tokenizer(path)
        self.stop_ids = frozenset(self.spec.stop_ids) | (self.tokenizer.stop_ids if self.tokenizer else frozenset())
        started = time.perf_counter()
        self.runner = open_runner(config, checkpoint, self.plan, device)
        where = (f"device {device}: {device_why}", *room, f"threads {threads}: {why}")
        self.because = (*self.plan.because, *where, *self.runner.because)
        self.load_seconds = time.perf_counter() - started
        self.cache = CacheManager(
            self.plan.cache, self.plan.prefix
        )  # after the arenas: its lists are long if they are absurdly large
        self.scheduler = Scheduler(self.cache, config.prefill_chunk)
        computed_by = f"{self.runner.selection.because}; {self.plan.weight_bits} bits"
        self._tiers = open_tiers(config, checkpoint, self.plan.dtype, computed_by, self.cache, self.runner.kept)
        self._computing = self._tiers.computing if self._tiers else Rate()
        self._active: dict[str, _Active] = {}
        self._stuck = False
        self._grammars = GrammarQueue(self.tokenizer, self.spec.vocab, self.stop_ids)
        self._counts = {
            "prompt_tokens_total": 0,
            "generation_tokens_total": 0,
            "preemptions_total": 0,
            "steps_total": 0,
        }
        self.handover: Handover | None = None
        if config.pd is not None:
            self._door = FrontDoor(config, config.pd, checkpoint, self.plan, self.runner, self.scheduler)
            self.handover, probed = self._door.handover, self._door.bytes_per_second
            self._status = RouterStatus(self.handover, self.scheduler, self._computing, probed, self.limits.context)
            self.because += self._door.because
        if device.type == "cuda":
            self.warm_up(None if config.eager else capture_on(device))

    def warm_up(self, capture: Capture | None = None) -> None:
        """Rehearse every kind of step, so that no request waits for a kernel; then record decode steps with `capture`.

        Before the first request: what pages and slots hold is lost.
        """
        slots, context = self.plan.cache.slots, self.limits.context
        self.because += (warm_up(self.runner, self.spec.vocab, slots, self.config.prefill_chunk, context),)
        if capture is not None:
            sizes = decode_sizes(slots)
            self.runner.record(sizes, context, capture)
            self.because += (f"decode steps recorded for {', '.join(map(str, sizes))} sequences",)
        self.runner.settle(self.config.eager)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do now. Not while all that is open waits for other engines."""
        return (not self.scheduler.idle and not self._stuck) or self._grammars.pending > 0

    def add(self, request: Submit) -> None:
        """Queue one sequence. Raises RequestError, ContextLengthError, OverloadedError, or what `Handover.check` does;
        then nothing was queued."""
        try:
            self._add(request)
        except PeriluneError as error:
            self._turn_away(request, str(error))
            raise

    def _turn_away(self, request: Submit, reason: str) -> None:
        if self.handover is not None:
            self.handover.turn_away(request, reason)

    def _add(self, request: Submit) -> None:
        if request.id in self._active or request.id in self._grammars:
            raise RequestError(f"The request id {request.id!r} is in use.", param="request_id")
        max_new = self.limits.check(request.prompt, request.params)
        if len(self._active) >= self.config.max_waiting + self.config.max_running:
            raise OverloadedError(
                "The queue is full.", f"{len(self._active)} requests are open.", "Retry later, or raise max_waiting."
            )
        if self.handover is not None:
            self.handover.check(request)
        elif request.handover is not None:
            raise UnsupportedError("This engine hands nothing over.", "It has no cluster key.", "Start it with one.")
        if request.params.grammar is not None:
            self._grammars.put(request, max_new)
        else:
            self._queue(request, max_new, None)

    def _queue(self, request: Submit, max_new: int, constraint: Constraint | None) -> None:
        stop_ids = frozenset(request.params.stop_token_ids)
        if not request.params.ignore_eos:
            stop_ids |= self.stop_ids
        sampler = Sampler(
            request.params,
            request.prompt,
            self.spec.vocab,
            seed=request.seed,
            stream=request.stream,
            stop_ids=stop_ids,
            constraint=constraint,
        )
        best = request.params.prompt_logprobs
        scores = None if best is None else PromptScores(request.prompt, best)
        sequence = Sequence(
            request.id,
            request.prompt,
            salt=request.salt,
            marks=request.marks,
            reusable=scores.reusable if scores else None,
            remote=isinstance(request.handover, Borrow),
        )
        self._active[request.id] = _Active(sequence, request, sampler, max_new, scores)
        self.scheduler.add(sequence)
        self._stuck = False

    def abort(self, request_id: str) -> None:
        """Forget a sequence at any moment. An id that is not open is ignored: it may just have finished."""
        self._stuck = False
        if (compiling := self._grammars.cancel(request_id)) is not None:
            self._turn_away(compiling, "the client is gone")
        active = self._active.get(request_id)
        if active is None:
            return
        if self.handover is not None and active.sequence.lent:
            self.handover.recall(active.sequence)
            return
        del self._active[request_id]
        if self.handover is not None and active.sequence.remote:
            self.handover.forget(active.sequence, active.request)
        else:
            self.scheduler.remove(active.sequence)

    def step(self) -> list[TokenEvent]:
        """Advance every running sequence. An exception inside fails the sequences it concerns, not the engine.

        But EngineDeadError: a rank is gone.
        """
        self.runner.check()
        events = self._take_compiled()
        if self.handover is not None:
            events += self._take_handovers(self.handover)
        self._load_prefixes()
        step = self.scheduler.schedule()
        self._counts["preemptions_total"] += len(step.preempted)
        for sequence in step.admitted:
            events += self._start(sequence)
        self._stuck = not step.work and not step.admitted
        return events + self._run(step) if step.work else events

    def _load_prefixes(self) -> None:
        """Before a request can be admitted: what lower tiers hold of its prompt comes into memory, once."""
        if self._tiers is None:
            return
        for sequence in islice(self.scheduler.waiting, self.plan.cache.slots - len(self.scheduler.running)):
            active = self._active[sequence.id]
            if not active.looked_up and sequence.reusable is None and not sequence.remote:
                active.looked_up = True
                self._tiers.load(sequence.prompt, sequence.salt)

    def tidy(self) -> bool:
        """For idle moments: one prefix goes to the cache folder. False if there is none, or too much is under way."""
        return self._tiers is not None and self._tiers.save_one()

    def _start(self, sequence: Sequence) -> list[TokenEvent]:
        """What the slot remembers before the first token: nothing, or the state of a prompt with the same beginning.

        If another engine is to read it or to bring it, that begins here.
        """
        log.debug("%s: %s", sequence.id, self.cache.explanation(sequence.id))
        request = self._active[sequence.id].request
        if self.handover is not None and sequence.remote:
            try:
                self.handover.receive(sequence, request)
            except PeriluneError as error:
                return [self._fail(sequence, error)]
            return []
        slot, source = self.cache.slot(sequence.id), self.cache.source(sequence.id)
        if source is None:
            self.runner.clear(slot)
        else:
            self.runner.restore(source, slot)
        if self.handover is not None and self.handover.lends_early(request):
            lent = self.handover.offer(sequence)
            return [TokenEvent(sequence.id, finish_reason="length", cached_tokens=sequence.cached, lent=lent)]
        return []

    def _take_handovers(self, handover: Handover) -> list[TokenEvent]:
        """What other engines have done for our requests, or failed to do."""
        events = []
        for outcome in handover.outcomes():
            active, self._stuck = self._active[outcome.sequence.id], False
            if isinstance(outcome, Here):
                events.append(self._resume(active, outcome.first))
            elif not isinstance(outcome, Elsewhere):
                del self._active[outcome.sequence.id]
                self.scheduler.remove(outcome.sequence)
            elif outcome.error is None:
                active.remote = False
            else:
                del self._active[outcome.sequence.id]
                events.append(TokenEvent(active.request.id, finish_reason="error", error=WireError.of(outcome.error)))
        return events

    def _resume(self, active: _Active, first: FirstToken) -> TokenEvent:
        """The prompt was read and the first token drawn elsewhere: the answer goes on as if that had been here."""
        active.remote, active.sampler.seed = True, first.seed
        try:
            active.sampler.take(first.token.token_id)
        except Exception as error:
            log.exception("the first token cannot be gone on from")
            return self._fail(active.sequence, error)
        return self._extend(active, first.token)

    def _take_compiled(self) -> list[TokenEvent]:
        """Queue the requests whose grammar is ready; report those whose grammar is no grammar."""
        failed = []
        for request, max_new, result in self._grammars.collect(wait=self.scheduler.idle):
            if isinstance(result, Exception):
                self._turn_away(request, str(result))
                failed.append(TokenEvent(request.id, finish_reason="error", error=WireError.of(result)))
            else:
                self._queue(request, max_new, result)
        return failed

    def _run(self, step: Step) -> list[TokenEvent]:
        started = time.perf_counter()
        try:
            pieces = [self._piece(work) for work in step.work]
            logits = self._read(step, pieces, self.runner.run(pieces))
            self.runner.wait("a step")
        except EngineDeadError:
            raise
        except Exception as error:
            log.exception("a step failed")
            return [self._fail(work.sequence, error) for work in step.work]
        self.scheduler.commit(step)
        self._counts["steps_total"] += 1
        self._counts["prompt_tokens_total"] += sum(work.count for work in step.work if work.mode == "prefill")
        if all(work.mode == "prefill" for work in step.work):
            self._computing.note(sum(work.count for work in step.work), time.perf_counter() - started)
        if self.handover is not None:
            self.handover.progress(work.sequence for work in step.work)
        sampling = [work.sequence for work in step.work if work.samples]
        tokens = self._sample(sampling, logits)
        events = [self._advance(sequence, token) for sequence, token in zip(sampling, tokens, strict=True)]
        return [event for event in events if event is not None]

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> list[TokenLogprobs | Exception | None]:
        """The next token of each sequence from logits [n, vocab]; None for one that wants no token."""
        active = [self._active[sequence.id] for sequence in sequences]
        wanting = [i for i, one in enumerate(active) if one.max_new]
        ops = self.runner.selection.ops.sample
        tokens = iter(sample_rows([active[i].sampler for i in wanting], [logits[i] for i in wanting], ops))
        return [next(tokens) if one.max_new else None for one in active]

    def _read(self, step: Step, pieces: list[Piece], rows: Tensor) -> Tensor:
        """Logits [n, vocab] of those who sample; on the way, what others want to know of their prompts' rows."""
        last, at = [], 0
        for work, piece in zip(step.work, pieces, strict=True):
            scores, start = self._active[work.sequence.id].scores, at
            at += piece.logit_count
            if scores is not None and piece.logits == "all":
                scores.add(work.start, rows[start:at], self.runner.head)
                work.sequence.reusable = scores.reusable
            if work.samples:
                last.append(at - 1)
        return self.runner.head(rows if len(last) == len(rows) else rows[last])

    def _fail(self, sequence: Sequence, error: Exception) -> TokenEvent:
        self._active.pop(sequence.id, None)
        if self.handover is not None and sequence.lent:
            self.handover.abandon(sequence)
        else:
            self.scheduler.remove(sequence, sound=False)
        return TokenEvent(sequence.id, finish_reason="error", error=WireError.of(error))

    def _piece(self, work: Work) -> Piece:
        sequence, scores = work.sequence, self._active[work.sequence.id].scores
        scored = work.mode == "prefill" and scores is not None and scores.reusable is not None
        return Piece(
            sequence.tokens(work.start, work.count),
            work.start,
            self.cache.slot(sequence.id),
            self.cache.pages(sequence.id),
            work.mode,
            "all" if scored else "last" if work.samples else "none",
            work.exports,
        )

    def _advance(self, sequence: Sequence, token: TokenLogprobs | Exception | None) -> TokenEvent | None:
        """One sequence has its next token: end it if it is done, or if none could be sampled."""
        active = self._active[sequence.id]
        if isinstance(token, Exception):
            log.error("no token could be sampled", exc_info=token)
            return self._fail(sequence, token)
        if token is not None and self.handover is not None and isinstance(active.request.handover, Lend):
            return self._lend(self.handover, active, token)
        return self._extend(active, token)

    def _lend(self, handover: Handover, active: _Active, token: TokenLogprobs) -> TokenEvent | None:
        """The prompt was read for another engine, which goes on from here. None if the ticket was given before."""
        sequence = active.sequence
        del self._active[sequence.id]
        lent = handover.seal(sequence, active.request, token)
        if lent is None:
            return None
        return TokenEvent(sequence.id, token, "length", cached_tokens=sequence.cached, lent=lent)

    def _extend(self, active: _Active, token: TokenLogprobs | None) -> TokenEvent:
        """The answer has one more token, or none because none was asked for."""
        sequence, ending = active.sequence, _Ending("length")
        if token is not None:
            sequence.outputs.append(token.token_id)
            self._counts["generation_tokens_total"] += 1
            ending = self._ending(active, token)
        if ending.finish is not None:
            self._active.pop(sequence.id)
            self.scheduler.remove(sequence)
        prompt, active.scores = active.scores, None
        return TokenEvent(
            sequence.id,
            token,
            ending.finish,
            ending.stop_token,
            ending.ends_turn,
            sequence.cached,
            prompt_logprobs=tuple(prompt.entries) if prompt else None,
            remote=active.remote,
        )

    def _ending(self, active: _Active, token: TokenLogprobs) -> _Ending:
        params, count = active.request.params, len(active.sequence.outputs)
        constraint = active.sampler.constraint
        if count > params.min_tokens:
            if token.token_id in params.stop_token_ids:
                return _Ending("stop", token.token_id, ends_turn=True)
            if not params.ignore_eos and token.token_id in self.stop_ids:
                return _Ending("stop", ends_turn=True)
        if constraint is not None and constraint.finished:
            return _Ending("stop", ends_turn=token.token_id in self.stop_ids)
        return _Ending("length" if count >= active.max_new else None)

    def logits(self, tokens: tuple[int, ...]) -> Tensor:
        """fp32 [T, vocab] of a whole prompt in one pass. Needs a free slot and enough pages, so an idle engine."""
        self.limits.check_prompt(tokens)
        name = "logits"
        if not self.cache.can_admit(len(tokens)):
            raise OverloadedError("No room for a prompt.", "Every page or slot is taken by a running request.")
        slot = self.cache.admit(name, len(tokens))
        try:
            self.runner.clear(slot)
            return self.runner.head(self.runner.run([Piece(tokens, 0, slot, self.cache.pages(name), "prefill", "all")]))
        finally:
            self.cache.free(name)

    def stats(self) -> dict[str, int | float | str]:
        """Planned, allocated and used bytes, pages, slots, queue lengths and totals since the start."""
        held = self.cache.stats()
        return {
            "dtype": self.plan.dtype,
            "ranks": self.config.tp,
            "max_context": self.limits.context,
            "cache_bytes_planned": self.plan.cache.total_bytes,
            "cache_bytes_allocated": self.runner.allocated_bytes,
            "cache_bytes_used": held.bytes_used,
            "pages_total": held.pages_total,
            "pages_used": held.pages_used,
            "slots_total": held.slots_total,
            "slots_used": held.slots_used,
            "pages_cached": held.pages_cached,
            "snapshot_slots": self.plan.cache.snapshots,
            "snapshots": held.snapshots,
            "cache_bytes_cached": held.bytes_cached,
            "cache_bytes_padding": held.bytes_padding,
            "running": len(self.scheduler.running),
            "waiting": len(self.scheduler.waiting),
            "load_seconds": self.load_seconds,
            **(self.runner.guard.named() if self.runner.guard else {}),
            **self._counts,
            **(self.cache.counts.named() if self.plan.prefix else {}),
            **(self._tiers.named() if self._tiers else {}),
            **(self.handover.exchange.counters.named() if self.handover else {}),
        }

    def view(self) -> View:
        """This moment, for whoever watches."""
        cache = self.plan.cache
        return View(self.stats(), cache.page_bytes, cache.slot_bytes, requests_of(self.scheduler))

    def status(self) -> dict[str, Any] | None:
        """What a router wants to know; None for an engine that hands nothing over."""
        return self._status.report() if self.handover else None

    def check(self) -> None:
        """Prove the books of the cache; raises AssertionError. Tests call it between steps."""
        self.cache.check()
        if self._tiers is not None:
            self._tiers.check()

    def close(self) -> None:
        if self.handover is not None:
            self._door.close()
        if self._tiers is not None:
            self._tiers.save_all()
        self._grammars.close()
        self.runner.close()
