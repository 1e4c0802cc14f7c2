"""What is measured, as data. Imports nothing of an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal["prefill", "decode", "first token"]

CONTEXT_MARGIN = 256
BASE_SEED = 1_000_003


@dataclass(frozen=True)
class Workload:
    """One row. `tokens` of prompt, or decode steps, after `depth` tokens that were computed before the clock started.

    Each of `sequences` decodes `tokens` tokens, sampled greedily. Rates count all sequences together.
    """

    kind: Kind
    tokens: int
    depth: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        if self.kind == "first token":
            return f"first token of {self.tokens}"
        what = self.kind + (f" {self.tokens:,}" if self.kind == "prefill" else "")
        if self.kind == "decode" and self.sequences > 1:
            what += f", {self.sequences} sequences"
        return what + (f" after {self.depth:,}" if self.depth else "")

    @property
    def unit(self) -> str:
        return "s" if self.kind == "first token" else "tokens/s"

    @property
    def context(self) -> int:
        """Tokens one sequence reaches, with a margin for the steps around the measured ones."""
        return self.depth + self.tokens + CONTEXT_MARGIN

    def value(self, seconds: float) -> float:
        """The row's number from the time one run took: a rate, or the time itself."""
        return seconds if self.kind == "first token" else self.tokens * self.sequences / seconds


def workloads(quick: bool) -> tuple[Workload, ...]:
    """All rows, deepest last: what lies before the measured tokens is then extended, never computed again."""
    steps = 16 if quick else 32
    prefills = [Workload("prefill", tokens) for tokens in ((512, 2048) if quick else (512, 2048, 8192))]
    batches = [Workload("decode", steps, 0, n) for n in ((1, 4, 16) if quick else (1, 2, 4, 8, 16))]
    rows = [Workload("first token", 100), *prefills, *batches]
    for depth in (4096,) if quick else (4096, 32768):
        rows += [Workload("prefill", 512, depth), Workload("decode", steps, depth)]
    return tuple(rows)


def longest(rows: Iterable[Workload]) -> int:
    """The context that all of `rows` fit."""
    return max(row.context for row in rows)


def random_tokens(seed: int, count: int, vocab: int) -> list[int]:
    """Token ids that no other seed gives: nothing of one run is in a cache for the next."""
    return Random(seed).choices(range(vocab), k=count)  # noqa: S311  # ids for a benchmark


def base_tokens(depth: int, vocab: int) -> list[int]:
    """What lies before the measured tokens. A shallower base is the beginning of a deeper one."""
    return random_tokens(BASE_SEED, depth, vocab)
