"""The steps an engine rehearses before its first request, so that none waits for a kernel to be compiled.

Which binary a launch runs depends on few things: weights and shapes of the model, which never change, and whether
there are few rows or many, for a product, for an expert, for a stretch of context. One step on either side of each of
these is all there is; `ops/gpu/guard.py` says if one was forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perilune.cache.geometry import PAGE_TOKENS, pages_for
from perilune.engine.request import SamplingParams
from perilune.engine.sampler import Sampler, sample_rows
from perilune.engine.scores import BLOCK
from perilune.nn.batch import Piece

if TYPE_CHECKING:
    from perilune.engine.ranked import RankedRunner
    from perilune.engine.runner import Runner

FEW = 16
"""Rows up to which a product only streams its weight (ops/linear/triton.py)."""
STRETCH = 4096
"""Tokens of context that prefill expands at a time (ops/mla/triton.py)."""

Step = tuple[Piece, ...]


def warm_up(runner: Runner | RankedRunner, vocab: int, slots: int, chunk: int, context: int) -> str:
    """Run every rehearsal, the head on every number of rows, and every way to sample. Returns what to say of it."""
    started = time.perf_counter()
    for step in rehearsals(slots, chunk, context):
        rows = runner.run(step)
        runner.wait("the warm-up")
    rows = rows[:1].repeat(BLOCK, 1)
    for count in sorted({1, FEW + 1, min(slots, BLOCK), BLOCK}):
        logits = runner.head(rows[:count])
    for params in sampling():
        samplers = [Sampler(params, (0,), vocab, seed=0) for _ in range(2)]
        sample_rows(samplers, list(logits[:2]), runner.selection.ops.sample)
    for slot in range(slots):
        runner.clear(slot)
    runner.wait("the warm-up")
    ready = runner.guard.ready if runner.guard else 0
    return f"warm-up: {ready} kernels ready in {time.perf_counter() - started:.1f} s"


def rehearsals(slots: int, chunk: int, context: int) -> Iterator[Step]:
    """Steps for an idle engine of `slots` sequences, `chunk` prompt tokens a step and `context` tokens each.

    All of them write page 0 and the slots from 0 on, and mean nothing.
    """
    chunk = min(chunk, context)
    for count in sorted({1, min(FEW + 1, chunk), chunk}):
        yield (_prefill(0, count, 0),)
    deep = (min(context, STRETCH + 1) - 1) // PAGE_TOKENS * PAGE_TOKENS
    yield (_prefill(deep, min(chunk, context - deep), 0),)
    for count in sorted({1, min(FEW + 1, slots), slots}):
        yield tuple(_decode(context - 1, slot) for slot in range(count))
    yield (_prefill(0, chunk, 0), *(_decode(0, slot) for slot in range(1, slots)))
    if context > 1:
        yield (Piece((0, 0), 0, 0, [0], "decode"),)  # tokens that a preempted request repeats


def sampling() -> Iterator[SamplingParams]:
    """Every way from logits to a token."""
    yield SamplingParams(temperature=0, logprobs=1)
    yield SamplingParams(temperature=1.0)
    yield SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01)
    yield SamplingParams(temperature=1.0, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1)


def _prefill(start: int, count: int, slot: int) -> Piece:
    exports = ((PAGE_TOKENS, slot),) if count >= PAGE_TOKENS else ()
    return Piece((0,) * count, start, slot, [0] * pages_for(start + count), "prefill", exports=exports)


def _decode(start: int, slot: int) -> Piece:
    return Piece((0,), start, slot, [0] * pages_for(start + 1), "decode")
