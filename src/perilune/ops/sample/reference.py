"""From rows of logits to a token each, in plain torch. A row is fp32 [V].

A row is processed alone, so a request's tokens do not depend on the batch it ran in. `greedy` and `choose` take all
rows of a step: a GPU is asked once, and waited for once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 512
NONE = -1


class Choice(NamedTuple):
    """How one token is drawn: what is left out first (0, 1.0 and 0.0 are off), and the draw in [0, 1)."""

    top_k: int
    top_p: float
    min_p: float
    u: float

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True)
class Sampling:
    """One backend's way from logits to tokens; signatures and meanings are those of the functions in this file."""

    penalise: Callable[..., Tensor]
    greedy: Callable[[Sequence[Tensor]], list[int]]
    choose: Callable[[Sequence[Tensor], Sequence[Choice]], list[int]]


def greedy(rows: Sequence[Tensor]) -> list[int]:
    """The best token of each row, of equal ones the first."""
    return [int(row.argmax()) for row in rows]


def choose(rows: Sequence[Tensor], choices: Sequence[Choice]) -> list[int]:
    """A token of each row, truncated and drawn; NONE for a row that has none to draw: a NaN, or nothing finite."""
    return [_choose(row, *choice) for row, choice in zip(rows, choices, strict=True)]


def _choose(logits: Tensor, top_k: int, top_p: float, min_p: float, u: float) -> int:
    if not math.isfinite(float(logits.max())):
        return NONE
    return draw(truncate(logits, top_k=top_k, top_p=top_p, min_p=min_p), u)


def penalise(
    logits: Tensor, seen: Tensor, counts: Tensor, *, repetition: float, presence: float, frequency: float
) -> Tensor:
    """`seen` [V] bool: in prompt or answer; `counts` [V]: times in the answer.

    Repetition divides positive and multiplies negative logits of seen tokens (arXiv 1909.05858); presence and
    frequency are OpenAI's: logits - presence * (count > 0) - frequency * count.
    """
    if repetition != 1.0:
        scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(seen, scaled, logits)
    if presence or frequency:
        logits = logits - presence * (counts > 0) - frequency * counts
    return logits


def truncate(logits: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Set to -inf what top-k, then top-p, then min-p leave out; the best token always stays. 0, 1.0, 0.0 are off."""
    if 0 < top_k < logits.shape[0]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    if top_p < 1.0:
        kept = _nucleus(logits, top_p)
        logits = torch.full_like(logits, float("-inf")).index_copy(0, kept, logits[kept])
    if min_p > 0.0:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < min_p * p.max(), float("-inf"))
    return logits


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Ids of the fewest tokens, from the best down, whose probabilities reach `top_p`; equal ones by id.

    Sorting a vocabulary of 163,840 takes longer than a layer: only as many as are needed are sorted.
    """
    p, count = logits.softmax(-1), 256
    while True:
        least = logits.topk(min(count, logits.shape[0])).values[-1]
        ids = ((logits >= least) & (logits > float("-inf"))).nonzero().squeeze(1)
        ids = ids[logits[ids].sort(descending=True, stable=True).indices]
        reached = p[ids].cumsum(-1)
        if float(reached[-1]) >= top_p or not least > float("-inf") or count >= logits.shape[0]:
            break
        count *= 8
    keep = reached.roll(1) < top_p
    keep[0] = True
    return ids[keep]


def uniform(seed: int, stream: int, counter: int) -> float:
    """The draw in [0, 1) of a stream at a counter: Philox (SC11), so it needs no state and no order of calls."""
    # uint64 by name: from a list, numpy sends numbers of 2^63 and more through float64, and seeds become one
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=[counter, 0, 0, 0])
    return float(np.random.Generator(bits).random())


def draw(logits: Tensor, u: float) -> int:
    """The token whose share of the cumulative probability holds `u`. logits [V], finite or -inf.

    In two steps, the block of 512 tokens and the token in it, since a running sum over the vocabulary cannot be shared
    between lanes. Sums are fp64.
    """
    weights = F.pad((logits - logits.max()).exp(), (0, -logits.shape[0] % _BLOCK)).view(-1, _BLOCK)
    blocks = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    target = u * float(blocks[-1])
    block = _first_above(blocks, target)
    before = float(blocks[block - 1]) if block else 0.0
    return block * _BLOCK + _first_above(weights[block].double().cumsum(-1), target - before)


def _first_above(cumulative: Tensor, target: float) -> int:
    """Where the running sum first exceeds `target`; rounding may leave none, then where it first is all it becomes."""
    at = int(torch.searchsorted(cumulative, target, right=True))
    return at if at < cumulative.shape[0] else int(torch.searchsorted(cumulative, cumulative[-1]))


SAMPLING = Sampling(penalise, greedy, choose)
