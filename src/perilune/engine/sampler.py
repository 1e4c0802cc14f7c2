"""From logits to tokens: penalties, grammar, truncation, the draw, log probabilities. On a device nothing is waited for
but the tokens of all rows at once, and what a request asks for beyond them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from perilune.engine.request import SamplingParams, TokenLogprobs
from perilune.ops.sample.reference import NONE, SAMPLING, Choice, Sampling, uniform

P = ParamSpec("P")
T = TypeVar("T")


class Constraint(Protocol):
    """A grammar's position in one answer."""

    def mask(self, logits: Tensor) -> Tensor:
        """-inf where the grammar allows no token. [V] -> [V]."""

    def accept(self, token: int) -> None: ...

    @property
    def finished(self) -> bool: ...


class Sampler:
    """Keeps what the penalties count. It outlives preemption, so a resumed request samples as if never paused."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab: int,
        *,
        seed: int,
        stream: int = 0,
        stop_ids: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
    ) -> None:
        self.params, self.seed, self.stream, self.constraint = params, seed, stream, constraint
        self.drawn = 0
        self._stop = torch.tensor(sorted(i for i in stop_ids if i < vocab), dtype=torch.int64)
        bias = {i: b for i, b in params.logit_bias.items() if 0 <= i < vocab}
        self._biased = torch.tensor(list(bias), dtype=torch.int64)
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float32)
        self._penalised = (
            params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        )
        if self._penalised:
            self._seen = torch.zeros(vocab, dtype=torch.bool)
            self._seen[torch.tensor(prompt, dtype=torch.int64)] = True
            self._counts = torch.zeros(vocab)

    def sample(self, logits: Tensor, ops: Sampling = SAMPLING) -> TokenLogprobs:
        """logits [V] fp32 -> the token, with the log probabilities of the untouched logits. One row alone."""
        [token] = sample_rows([self], [logits], ops)
        if isinstance(token, Exception):
            raise token
        return token

    def take(self, token: int) -> None:
        """`token` is the next of the answer, whoever has drawn it."""
        self.drawn += 1
        if self._penalised:
            self._seen[token] = True
            self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.accept(token)

    @property
    def greedy(self) -> bool:
        return self.params.temperature < 1e-5

    @property
    def choice(self) -> Choice:
        """What `ops.choose` needs to know for the next token."""
        p = self.params
        return Choice(p.top_k, p.top_p, p.min_p, uniform(self.seed, self.stream, self.drawn))

    def shape(self, logits: Tensor, ops: Sampling) -> Tensor:
        """What there is to choose from: logits [V] with penalties, bias, grammar and temperature in them."""
        p, z = self.params, logits
        self._follow(z.device)
        if self._penalised:
            z = ops.penalise(
                z,
                self._seen,
                self._counts,
                repetition=p.repetition_penalty,
                presence=p.presence_penalty,
                frequency=p.frequency_penalty,
            )
        if len(self._bias):
            z = z.index_add(0, self._biased, self._bias)
        if self.constraint is not None:
            z = self.constraint.mask(z)
        if self.drawn < p.min_tokens and len(self._stop):
            longer = z.index_fill(0, self._stop, float("-inf"))
            if longer.isfinite().any():  # a grammar that is complete allows nothing but the end
                z = longer
        return z if self.greedy else z / p.temperature

    def _follow(self, device: torch.device) -> None:
        """What was made before there were logits goes where they are."""
        if self._stop.device != device:
            self._stop, self._biased, self._bias = (t.to(device) for t in (self._stop, self._biased, self._bias))
            if self._penalised:
                self._seen, self._counts = self._seen.to(device), self._counts.to(device)

    def report(self, logits: Tensor, token: int) -> TokenLogprobs:
        """`token` with the log probabilities that were asked for."""
        wanted = self.params.logprobs
        if wanted is None:
            return TokenLogprobs(token, 0.0)
        scores = logits.log_softmax(-1)
        best = scores.topk(wanted)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenLogprobs(token, float(scores[token]), top)


def sample_rows(samplers: Sequence[Sampler], rows: Sequence[Tensor], ops: Sampling) -> list[TokenLogprobs | Exception]:
    """A token per sampler from its row of logits [V], or the error that kept it from having one."""
    shaped = [_attempt(sampler.shape, row, ops) for sampler, row in zip(samplers, rows, strict=True)]
    sound = {i: z for i, z in enumerate(shaped) if isinstance(z, Tensor)}
    best = [i for i in sound if samplers[i].greedy]
    drawn = [i for i in sound if not samplers[i].greedy]
    tokens = dict(zip(best, ops.greedy([sound[i] for i in best]), strict=True)) if best else {}
    if drawn:
        choices = [samplers[i].choice for i in drawn]
        tokens |= zip(drawn, ops.choose([sound[i] for i in drawn], choices), strict=True)
    return [
        z if isinstance(z, Exception) else _attempt(_taken, samplers[i], rows[i], tokens[i])
        for i, z in enumerate(shaped)
    ]


def _taken(sampler: Sampler, logits: Tensor, token: int) -> TokenLogprobs:
    if token == NONE:
        raise IndexError("No token has a share of the probability: a logit is not a number, or all are ruled out.")
    sampler.take(token)
    return sampler.report(logits, token)


def _attempt(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """One sequence's error is no other's."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return error
