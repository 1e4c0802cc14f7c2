"""One sequence's way from logits to tokens: penalties, grammar, truncation, the draw, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from perilune.engine.request import SamplingParams, TokenLogprobs
from perilune.ops.sample import reference as ops


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
        self._bias = [(i, b) for i, b in params.logit_bias.items() if 0 <= i < vocab]
        self._penalised = (
            params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        )
        if self._penalised:
            self._seen = torch.zeros(vocab, dtype=torch.bool)
            self._seen[torch.tensor(prompt, dtype=torch.int64)] = True
            self._counts = torch.zeros(vocab)

    def sample(self, logits: Tensor) -> TokenLogprobs:
        """logits [V] fp32 -> the token, with the log probabilities of the untouched logits."""
        token = self._choose(logits)
        self.take(token)
        return self._report(logits, token)

    def take(self, token: int) -> None:
        """`token` is the next of the answer, whoever has drawn it."""
        self.drawn += 1
        if self._penalised:
            self._seen[token] = True
            self._counts[token] += 1
        if self.constraint is not None:
            self.constraint.accept(token)

    def _choose(self, logits: Tensor) -> int:
        p = self.params
        z = logits
        if self._penalised:
            z = ops.penalise(
                z,
                self._seen,
                self._counts,
                repetition=p.repetition_penalty,
                presence=p.presence_penalty,
                frequency=p.frequency_penalty,
            )
        if self._bias:
            z = z.clone()
            for token, bias in self._bias:
                z[token] += bias
        if self.constraint is not None:
            z = self.constraint.mask(z)
        if self.drawn < p.min_tokens and len(self._stop):
            longer = z.index_fill(0, self._stop, float("-inf"))
            if longer.isfinite().any():  # a grammar that is complete allows nothing but the end
                z = longer
        if p.temperature < 1e-5:
            return int(z.argmax())
        z = ops.truncate(z / p.temperature, top_k=p.top_k, top_p=p.top_p, min_p=p.min_p)
        return ops.draw(z, ops.uniform(self.seed, self.stream, self.drawn))

    def _report(self, logits: Tensor, token: int) -> TokenLogprobs:
        wanted = self.params.logprobs
        if wanted is None:
            return TokenLogprobs(token, 0.0)
        scores = logits.log_softmax(-1)
        best = scores.topk(wanted)
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return TokenLogprobs(token, float(scores[token]), top)
