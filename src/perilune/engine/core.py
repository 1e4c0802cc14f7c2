"""The engine itself: requests in, token events out, one step at a time. Runs in its own process under the server."""

from __future__ import annotations

import logging
import time
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from perilune.cache.manager import CacheManager
from perilune.cache.tier import Rate
from perilune.engine.answers import Answer, Answers, failure
from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.device import open_device
from perilune.engine.door import FrontDoor
from perilune.engine.grammars import GrammarQueue
from perilune.engine.graphs import Capture, TapeCapture, capture_on, decode_sizes, tape_sizes
from perilune.engine.handover import Handover
from perilune.engine.lending import Lending
from perilune.engine.limits import Limits
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.ranked import open_runner
from perilune.engine.request import TokenLogprobs
from perilune.engine.room import check_room
from perilune.engine.sampler import Constraint, sample_rows
from perilune.engine.scheduler import Scheduler, Sequence, Step, Work
from perilune.engine.status import RouterStatus
from perilune.engine.threads import set_threads
from perilune.engine.tiers import open_tiers
from perilune.engine.view import View, requests_of
from perilune.engine.warm import warm_up
from perilune.errors import EngineDeadError, OverloadedError, PeriluneError, RequestError
from perilune.models.checkpoint import Checkpoint
from perilune.nn.batch import Piece
from perilune.text.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


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
        self._answers = Answers(self.scheduler)
        self._stuck = False
        self._grammars = GrammarQueue(self.tokenizer, self.spec.vocab, self.stop_ids)
        self._counts = {
            "prompt_tokens_total": 0,
            "preemptions_total": 0,
            "steps_total": 0,
        }
        self.handover: Handover | None = None
        if config.pd is not None:
            self._door = FrontDoor(config, config.pd, checkpoint, self.plan, self.runner, self.scheduler)
            self.handover, probed = self._door.handover, self._door.bytes_per_second
            self._status = RouterStatus(self.handover, self.scheduler, self._computing, probed, self.limits.context)
            self.because += self._door.because
        self._lending = Lending(self.handover, self._answers)
        native = self.runner.selection.native
        if device.type == "cuda":
            self.warm_up(None if config.eager else capture_on(device))
        elif native is not None and config.tp == 1 and not config.eager:  # gloo's sums are no calls of kernels
            sizes = tape_sizes(self.plan.cache.slots)
            self.runner.record(sizes, self.limits.context, TapeCapture(native))
            self.because += (f"decode steps recorded when they first come, for up to {sizes[-1]} sequences",)

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
            self._lending.turn_away(request, str(error))
            raise

    def _add(self, request: Submit) -> None:
        if request.id in self._answers or request.id in self._grammars:
            raise RequestError(f"The request id {request.id!r} is in use.", param="request_id")
        max_new = self.limits.check(request.prompt, request.params)
        if len(self._answers) >= self.config.max_waiting + self.config.max_running:
            raise OverloadedError(
                "The queue is full.", f"{len(self._answers)} requests are open.", "Retry later, or raise max_waiting."
            )
        self._lending.check(request)
        if request.params.grammar is not None:
            self._grammars.put(request, max_new)
        else:
            self._queue(request, max_new, None)

    def _queue(self, request: Submit, max_new: int, constraint: Constraint | None) -> None:
        self._answers.open(Answer.begin(request, max_new, constraint, self.spec.vocab, self.stop_ids))
        self._stuck = False

    def abort(self, request_id: str) -> None:
        """Forget a sequence at any moment. An id that is not open is ignored: it may just have finished."""
        self._stuck = False
        if (compiling := self._grammars.cancel(request_id)) is not None:
            self._lending.turn_away(compiling, "the client is gone")
        answer = self._answers.get(request_id)
        if answer is not None and not self._lending.abort(answer):
            self._answers.drop(answer.sequence)

    def step(self) -> list[TokenEvent]:
        """Advance every running sequence. An exception inside fails the sequences it concerns, not the engine.

        But EngineDeadError: a rank is gone.
        """
        self.runner.check()
        events = self._take_compiled() + self._lending.outcomes()
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
            answer = self._answers[sequence.id]
            if not answer.looked_up and sequence.reusable is None and not sequence.remote:
                answer.looked_up = True
                self._tiers.load(sequence.prompt, sequence.salt)

    def tidy(self) -> bool:
        """For idle moments: one prefix goes to the cache folder. False if there is none, or too much is under way."""
        return self._tiers is not None and self._tiers.save_one()

    def _start(self, sequence: Sequence) -> list[TokenEvent]:
        """What the slot remembers before the first token: nothing, or the state of a prompt with the same beginning.

        If another engine is to read it or to bring it, that begins here.
        """
        log.debug("%s: %s", sequence.id, self.cache.explanation(sequence.id))
        answer = self._answers[sequence.id]
        if sequence.remote:
            return self._lending.receive(answer)
        slot, source = self.cache.slot(sequence.id), self.cache.source(sequence.id)
        if source is None:
            self.runner.clear(slot)
        else:
            self.runner.restore(source, slot)
        return self._lending.offer(answer)

    def _take_compiled(self) -> list[TokenEvent]:
        """Queue the requests whose grammar is ready; report those whose grammar is no grammar."""
        failed = []
        for request, max_new, result in self._grammars.collect(wait=self.scheduler.idle):
            if isinstance(result, Exception):
                self._lending.turn_away(request, str(result))
                failed.append(failure(request.id, result))
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
            return [self._lending.fail(work.sequence, error) for work in step.work]
        self.scheduler.commit(step)
        self._counts["steps_total"] += 1
        self._counts["prompt_tokens_total"] += sum(work.count for work in step.work if work.mode == "prefill")
        if all(work.mode == "prefill" for work in step.work):
            self._computing.note(sum(work.count for work in step.work), time.perf_counter() - started)
        self._lending.progress(work.sequence for work in step.work)
        sampling = [work.sequence for work in step.work if work.samples]
        tokens = self._sample(sampling, logits)
        events = [self._advance(sequence, token) for sequence, token in zip(sampling, tokens, strict=True)]
        return [event for event in events if event is not None]

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> list[TokenLogprobs | Exception | None]:
        """The next token of each sequence from logits [n, vocab]; None for one that wants no token."""
        answers = [self._answers[sequence.id] for sequence in sequences]
        wanting = [i for i, one in enumerate(answers) if one.max_new]
        ops = self.runner.selection.ops.sample
        tokens = iter(sample_rows([answers[i].sampler for i in wanting], [logits[i] for i in wanting], ops))
        return [next(tokens) if one.max_new else None for one in answers]

    def _read(self, step: Step, pieces: list[Piece], rows: Tensor) -> Tensor:
        """Logits [n, vocab] of those who sample; on the way, what others want to know of their prompts' rows."""
        last, at = [], 0
        for work, piece in zip(step.work, pieces, strict=True):
            scores, start = self._answers[work.sequence.id].scores, at
            at += piece.logit_count
            if scores is not None and piece.logits == "all":
                scores.add(work.start, rows[start:at], self.runner.head)
                work.sequence.reusable = scores.reusable
            if work.samples:
                last.append(at - 1)
        return self.runner.head(rows if len(last) == len(rows) else rows[last])

    def _piece(self, work: Work) -> Piece:
        sequence, scores = work.sequence, self._answers[work.sequence.id].scores
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
        if isinstance(token, Exception):
            log.error("no token could be sampled", exc_info=token)
            return self._lending.fail(sequence, token)
        return self._lending.extend(self._answers[sequence.id], token)

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
            "generation_tokens_total": self._answers.generated,
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
