"""Answers under way: how a submitted request becomes one, grows by a token at a time, and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from perilune.engine.messages import Submit, TokenEvent, WireError
from perilune.engine.request import Borrow, FinishReason, TokenLogprobs
from perilune.engine.sampler import Constraint, Sampler
from perilune.engine.scheduler import Scheduler, Sequence
from perilune.engine.scores import PromptScores


@dataclass
class Answer:
    """A sequence with everything the scheduler need not know. `turn_ends`: ids that end the model's turn.

    `looked_up`: tiers below the cache were asked for its prompt. `remote` as in TokenEvent.
    """

    sequence: Sequence
    request: Submit
    sampler: Sampler
    max_new: int
    scores: PromptScores | None
    turn_ends: frozenset[int]
    looked_up: bool = False
    remote: bool | None = None

    @classmethod
    def begin(
        cls, request: Submit, max_new: int, constraint: Constraint | None, vocab: int, turn_ends: frozenset[int]
    ) -> Answer:
        stop_ids = frozenset(request.params.stop_token_ids)
        if not request.params.ignore_eos:
            stop_ids |= turn_ends
        sampler = Sampler(
            request.params,
            request.prompt,
            vocab,
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
        return cls(sequence, request, sampler, max_new, scores, turn_ends)

    def ending(self, token: TokenLogprobs) -> _Ending:
        """What `token`, the answer's last, means for it."""
        params, count = self.request.params, len(self.sequence.outputs)
        constraint = self.sampler.constraint
        if count > params.min_tokens:
            if token.token_id in params.stop_token_ids:
                return _Ending("stop", token.token_id, ends_turn=True)
            if not params.ignore_eos and token.token_id in self.turn_ends:
                return _Ending("stop", ends_turn=True)
        if constraint is not None and constraint.finished:
            return _Ending("stop", ends_turn=token.token_id in self.turn_ends)
        return _Ending("length" if count >= self.max_new else None)


class _Ending(NamedTuple):
    """Why a sequence ends, the stop token that was asked for, whether the last token ends the turn and is no text."""

    finish: FinishReason | None
    stop_token: int | None = None
    ends_turn: bool = False


class Answers(dict[str, Answer]):
    """All that are open, by id. Who leaves it here leaves the scheduler too, but for those that `pop` takes."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self.generated, self._scheduler = 0, scheduler

    def open(self, answer: Answer) -> None:
        self[answer.sequence.id] = answer
        self._scheduler.add(answer.sequence)

    def drop(self, sequence: Sequence) -> None:
        """Nobody waits for it any more."""
        del self[sequence.id]
        self._scheduler.remove(sequence)

    def extend(self, answer: Answer, token: TokenLogprobs | None) -> TokenEvent:
        """One more token, or none because none was asked for."""
        sequence, ending = answer.sequence, _Ending("length")
        if token is not None:
            sequence.outputs.append(token.token_id)
            self.generated += 1
            ending = answer.ending(token)
        if ending.finish is not None:
            self.drop(sequence)
        prompt, answer.scores = answer.scores, None
        return TokenEvent(
            sequence.id,
            token,
            ending.finish,
            ending.stop_token,
            ending.ends_turn,
            sequence.cached,
            prompt_logprobs=tuple(prompt.entries) if prompt else None,
            remote=answer.remote,
        )

    def fail(self, sequence: Sequence, error: Exception) -> TokenEvent:
        """Its step failed half way: what that step wrote is of no use to anybody."""
        del self[sequence.id]
        self._scheduler.remove(sequence, sound=False)
        return failure(sequence.id, error)


def failure(request_id: str, error: Exception) -> TokenEvent:
    """The last event of a request that `error` ends."""
    return TokenEvent(request_id, finish_reason="error", error=WireError.of(error))
