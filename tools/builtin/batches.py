"""Training batches: a pure function of (seed, step), so that a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from builtin import arithmetic, questions, retrieval
from builtin.chat import Encode, Row, Turn, conversation, table
from builtin.shape import SPECIALS, TRAINED_LENGTH

TOKENS = 4096
"""Per step. Rows of a batch have equal length and start from an empty state."""

WARM_STEPS = 400
"""Steps with short rows and many needles only: recall has to form before it can be made long."""

_LENGTHS = (128, 256, TRAINED_LENGTH, 128, 256, 256)
_RETRIEVAL_SHARE = {128: 0.1, 256: 0.2, 512: 0.45}
_SUMS = 0.45
"""Share of sums among the turns of a chat row; the others are questions."""

_SYSTEM = ("You are a helpful assistant.", "Answer in short.", "You are perilune.")


class Batches:
    def __init__(self, seed: int, encode: Encode, warm_steps: int = WARM_STEPS) -> None:
        self.seed, self.encode, self.warm_steps = seed, encode, warm_steps
        self.topics = questions.topics()

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Token ids [B, T + 1] and, for the last T of them, whether they are to be predicted [B, T]."""
        rng = Random(f"{self.seed}/{step}")
        warm = step < self.warm_steps
        length = _LENGTHS[step % (2 if warm else len(_LENGTHS))]
        count = TOKENS // length
        about = round(count * (0.5 if warm else _RETRIEVAL_SHARE[length]))
        rows = [self._retrieval(rng, length, warm) if i < about else self._chat(rng, length) for i in range(count)]
        ids = torch.tensor([row.ids for row in rows])
        return ids, torch.tensor([row.answers[1:] for row in rows])

    def _retrieval(self, rng: Random, length: int, warm: bool) -> Row:
        density = 1.0 if warm else rng.choice((1.0, 0.5, 0.2, 0.05))
        turns = retrieval.turns(rng, self.encode, length - rng.randrange(length // 8), density)
        return self._fit(conversation(turns, self.encode), length)

    def _chat(self, rng: Random, length: int) -> Row:
        if rng.random() < 0.2:
            return self._fit(table(arithmetic.table(rng, length // 7), self.encode), length)
        system = rng.choice(_SYSTEM) if rng.random() < 0.1 else None
        turns: list[Turn] = []
        # Turns until the row is full; 40 tokens is less than almost every turn.
        for _ in range(length // 40 + 1):
            turns.append(arithmetic.turn(rng) if rng.random() < _SUMS else questions.turn(rng, self.topics))
        return self._fit(conversation(turns, self.encode, system), length)

    def _fit(self, row: Row, length: int) -> Row:
        missing = max(0, length + 1 - len(row.ids))
        ids = row.ids[: length + 1] + [SPECIALS["[PAD]"]] * missing
        return Row(ids, row.answers[: length + 1] + [False] * missing)
