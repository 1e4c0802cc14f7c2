"""What a model thought of each token of its prompt, gathered while the prompt is computed chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from perilune.engine.request import PromptLogprobs

BLOCK = 64
"""Rows of logits at once: of a vocabulary of 163,840, 40 MiB."""


class PromptScores:
    """Entry i is the log probability of prompt token i after those before it; nothing comes before the first.

    Entries are kept when the request is preempted. What the prefix cache has of a prompt has no logits, so as long as
    an entry is missing, prefill may start no later than at the row that yields it (`reusable`).
    """

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        """`top`: how many of the best alternatives to report beside each token."""
        self._prompt, self._top = prompt, top
        self.entries: list[PromptLogprobs | None] = [None]

    @property
    def reusable(self) -> int | None:
        """How many tokens of the prompt need not be computed (again); None once every entry is there."""
        return len(self.entries) - 1 if len(self.entries) < len(self._prompt) else None

    def add(self, start: int, rows: Tensor, head: Callable[[Tensor], Tensor]) -> None:
        """`rows` [count, D] of prompt tokens [start, start + count). `head` makes logits [n, vocab] of n of them."""
        end = min(start + len(rows), len(self._prompt) - 1)  # the last row foretells what is not in the prompt
        for at in range(len(self.entries) - 1, end, BLOCK):
            stop = min(at + BLOCK, end)
            self.entries += self._block(head(rows[at - start : stop - start]), self._prompt[at + 1 : stop + 1])

    def _block(self, logits: Tensor, tokens: Sequence[int]) -> list[PromptLogprobs]:
        """logits [n, vocab] and the n tokens that came next."""
        scores = logits.log_softmax(-1)
        own = scores.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
        ranks = (scores > own).sum(-1) + 1
        best = scores.topk(self._top, dim=-1)
        return [
            PromptLogprobs(token, score, tuple(zip(ids, values, strict=True)), rank)
            for token, score, ids, values, rank in zip(
                tokens, own[:, 0].tolist(), best.indices.tolist(), best.values.tolist(), ranks.tolist(), strict=True
            )
        ]
