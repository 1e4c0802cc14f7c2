"""What hand-overs do to the steps of an engine. Without a Handover there are none, and every call here does nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from perilune.engine.answers import Answer, Answers, failure
from perilune.engine.handover import Elsewhere, FirstToken, Handover, Here
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.request import Lend, TokenLogprobs
from perilune.engine.scheduler import Sequence
from perilune.errors import PeriluneError, UnsupportedError

log = logging.getLogger(__name__)


class Lending:
    """Belongs to the loop. `handover` decides who may read and write what; here it becomes events of `answers`."""

    def __init__(self, handover: Handover | None, answers: Answers) -> None:
        self._handover, self._answers = handover, answers

    def check(self, request: Submit) -> None:
        """Before a request is queued; raises what `Handover.check` does, and UnsupportedError without one."""
        if self._handover is not None:
            self._handover.check(request)
        elif request.handover is not None:
            raise UnsupportedError("This engine hands nothing over.", "It has no cluster key.", "Start it with one.")

    def turn_away(self, request: Submit, reason: str) -> None:
        """It will not be served here: whoever keeps its cache need not wait."""
        if self._handover is not None:
            self._handover.turn_away(request, reason)

    def abort(self, answer: Answer) -> bool:
        """The client is gone. False if no other engine has a part in this answer: it is the caller's to end."""
        if self._handover is None or not answer.sequence.pinned:
            return False
        if answer.sequence.lent:
            self._handover.recall(answer.sequence)
        else:
            del self._answers[answer.sequence.id]
            self._handover.forget(answer.sequence, answer.request)
        return True

    def outcomes(self) -> list[TokenEvent]:
        """What other engines have done for our requests, or failed to do."""
        events = []
        for outcome in self._handover.outcomes() if self._handover is not None else ():
            answer = self._answers[outcome.sequence.id]
            if isinstance(outcome, Here):
                events.append(self._resume(answer, outcome.first))
            elif not isinstance(outcome, Elsewhere):
                self._answers.drop(outcome.sequence)
            elif outcome.error is None:
                answer.remote = False
            else:
                del self._answers[outcome.sequence.id]
                events.append(failure(outcome.sequence.id, outcome.error))
        return events

    def _resume(self, answer: Answer, first: FirstToken) -> TokenEvent:
        """The prompt was read and the first token drawn elsewhere: the answer goes on as if that had been here."""
        answer.remote, answer.sampler.seed = True, first.seed
        try:
            answer.sampler.take(first.token.token_id)
        except Exception as error:
            log.exception("the first token cannot be gone on from")
            return self._answers.fail(answer.sequence, error)
        return self._answers.extend(answer, first.token)

    def receive(self, answer: Answer) -> list[TokenEvent]:
        """It was admitted, and its cache may come from another engine. The event is of its failure, if it is one."""
        assert self._handover is not None
        try:
            self._handover.receive(answer.sequence, answer.request)
        except PeriluneError as error:
            return [self._answers.fail(answer.sequence, error)]
        return []

    def offer(self, answer: Answer) -> list[TokenEvent]:
        """It was admitted and will be computed here. Its ticket, if another engine may read it while it grows."""
        if self._handover is None or not self._handover.lends_early(answer.request):
            return []
        sequence, lent = answer.sequence, self._handover.offer(answer.sequence)
        return [TokenEvent(sequence.id, finish_reason="length", cached_tokens=sequence.cached, lent=lent)]

    def progress(self, sequences: Iterable[Sequence]) -> None:
        """A step of theirs has finished."""
        if self._handover is not None:
            self._handover.progress(sequences)

    def extend(self, answer: Answer, token: TokenLogprobs | None) -> TokenEvent | None:
        """One more token. The first ends a prompt that was read for another engine, which goes on from there: then the
        event has the ticket, and is None if that was given before."""
        if token is None or not isinstance(answer.request.handover, Lend):
            return self._answers.extend(answer, token)
        assert self._handover is not None
        sequence = answer.sequence
        del self._answers[sequence.id]
        lent = self._handover.seal(sequence, answer.request, token)
        if lent is None:
            return None
        return TokenEvent(sequence.id, token, "length", cached_tokens=sequence.cached, lent=lent)

    def fail(self, sequence: Sequence, error: Exception) -> TokenEvent:
        """A step of this sequence failed."""
        if self._handover is None or not sequence.lent:
            return self._answers.fail(sequence, error)
        del self._answers[sequence.id]
        self._handover.abandon(sequence)
        return failure(sequence.id, error)
