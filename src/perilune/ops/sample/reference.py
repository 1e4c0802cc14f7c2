"""From one row of logits to one token, in plain torch. Every function takes and returns fp32 [V].

A row is processed alone, so a request's tokens do not depend on the batch it ran in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
        ordered, order = logits.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1)
        dropped = before >= top_p
        dropped[0] = False
        logits = logits.index_fill(0, order[dropped], float("-inf"))
    if min_p > 0.0:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < min_p * p.max(), float("-inf"))
    return logits


def uniform(seed: int, stream: int, counter: int) -> float:
    """The draw in [0, 1) of a stream at a counter: Philox (SC11), so it needs no state and no order of calls."""
    # uint64 by name: from a list, numpy sends numbers of 2^63 and more through float64, and seeds become one
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=[counter, 0, 0, 0])
    return float(np.random.Generator(bits).random())


def draw(logits: Tensor, u: float) -> int:
    """The token whose share of the cumulative probability holds `u`. logits [V], finite or -inf."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    at = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
    # rounding may point past the last possible token
    return min(at, int(torch.isfinite(logits).nonzero()[-1]))
