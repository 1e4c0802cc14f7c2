"""Truncation against brute force, draws against their probabilities, and a uniform that depends on nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.ops.sample import reference as ops

SEEDS = (0, 1, 2**63 - 1, 2**63, 2**64 - 2, -1)
INF = float("inf")


def softmax(logits: list[float]) -> list[float]:
    best = max(logits)
    weights = [math.exp(z - best) for z in logits]
    return [w / sum(weights) for w in weights]


def kept_by_hand(logits: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """Order by probability; top-k, then top-p over what is left, then min-p against the best."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if 0 < top_k < len(order):
        order = order[:top_k]
    p = dict(zip(order, softmax([logits[i] for i in order]), strict=True))
    kept, before = [], 0.0
    for i in order:
        if before >= top_p and top_p < 1.0:
            break
        kept.append(i)
        before += p[i]
    return {i for i in kept if p[i] >= min_p * p[kept[0]]}


@settings(max_examples=200, deadline=None)
@given(
    tenths=st.lists(st.integers(-120, 60), min_size=1, max_size=40, unique=True),
    top_k=st.sampled_from([-1, 0, 1, 2, 5, 39, 40, 1000]),
    top_p=st.sampled_from([0.001, 0.31, 0.5, 0.77, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0123, 0.21, 1.0]),
)
def test_truncation_keeps_what_brute_force_keeps(tenths: list[int], top_k: int, top_p: float, min_p: float) -> None:
    logits = [z / 10 for z in tenths]
    cut = ops.truncate(torch.tensor(logits), top_k=top_k, top_p=top_p, min_p=min_p)
    kept = {i for i, z in enumerate(cut.tolist()) if z > -INF}
    assert kept == kept_by_hand(logits, top_k, top_p, min_p)
    assert all(cut[i] == torch.tensor(logits[i]) for i in kept)


def test_truncation_of_a_row_a_grammar_has_masked() -> None:
    logits = torch.tensor([-INF, 1.0, -INF, 2.0])
    assert torch.equal(ops.truncate(logits, top_k=3, top_p=0.99, min_p=0.01), logits)


def test_penalties_are_the_published_formulas() -> None:
    logits = torch.tensor([2.0, -2.0, 3.0, -3.0])
    seen, counts = torch.tensor([True, True, True, False]), torch.tensor([0.0, 1.0, 3.0, 0.0])
    out = ops.penalise(logits, seen, counts, repetition=2.0, presence=0.5, frequency=0.25)
    assert out.tolist() == [1.0, -4.0 - 0.75, 1.5 - 1.25, -3.0]
    assert ops.penalise(logits, seen, counts, repetition=1.0, presence=0.0, frequency=0.0) is logits


@pytest.mark.parametrize("seed", [0, 7, 2**63, -1])
def test_draws_follow_the_probabilities(seed: int) -> None:
    """Chi-square over 8 outcomes, 4000 draws; 40 is exceeded once in a million for 7 degrees of freedom."""
    p = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    draws = 4000
    counts = torch.zeros(8)
    for counter in range(draws):
        counts[ops.draw(p.log(), ops.uniform(seed, 3, counter))] += 1
    expected = p * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 40


def test_a_draw_never_lands_on_an_impossible_token() -> None:
    logits = torch.tensor([-INF, 0.0, -INF, 1.0, -INF])
    assert ops.draw(logits, 0.0) == 1
    assert ops.draw(logits, 1 - 2**-53) == 3
    for counter in range(200):
        assert ops.draw(logits, ops.uniform(1, 0, counter)) in (1, 3)


def test_a_draw_splits_at_the_cumulative_probability() -> None:
    logits = torch.tensor([0.25, 0.5, 0.25]).log()
    assert [ops.draw(logits, u) for u in (0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999)] == [0, 0, 1, 1, 2, 2]


def test_uniform_depends_on_seed_stream_and_counter_only() -> None:
    keys = [(seed, stream, counter) for seed in SEEDS for stream in (0, 1) for counter in range(20)]
    forward = {key: ops.uniform(*key) for key in keys}
    torch.manual_seed(123)
    backward = {key: ops.uniform(*key) for key in reversed(keys)}
    assert forward == backward
    assert len(set(forward.values())) == len(keys)
    assert all(0 <= u < 1 for u in forward.values())


def test_uniform_is_the_same_on_every_host() -> None:
    """Known values: a change would change every seeded answer ever given."""
    assert ops.uniform(0, 0, 0) == 0.011546754286331562
    assert ops.uniform(42, 1, 7) == 0.8647170113210697


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(-(2**63), 2**64 - 1), stream=st.integers(0, 127), counter=st.integers(0, 2**40))
def test_uniform_takes_every_seed_a_request_may_have(seed: int, stream: int, counter: int) -> None:
    assert 0 <= ops.uniform(seed, stream, counter) < 1


@pytest.mark.parametrize("vocab", [511, 512, 513, 3000])
@pytest.mark.parametrize("flat", [True, False])
def test_a_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(vocab: int, flat: bool) -> None:
    """Flat: quantised logits, so that many tie, at the edge too, and a nucleus of most of the vocabulary."""
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    logits = (logits.round() if flat else logits * 4).clone()
    logits[::7] = -INF
    for top_p in (0.01, 0.5, 0.9, 0.999):
        order = logits.sort(descending=True, stable=True)
        before = order.values.softmax(-1).double().cumsum(-1).roll(1)
        before[0] = 0
        expected = set(order.indices[before < top_p].tolist())
        kept = set(ops.truncate(logits, top_k=0, top_p=top_p, min_p=0.0).isfinite().nonzero().flatten().tolist())
        assert len(kept ^ expected) <= 1  # sums in fp32 may take or leave the token at the edge


@pytest.mark.parametrize("vocab", [511, 512, 513, 3000])
def test_a_draw_from_a_large_vocabulary_is_that_of_one_running_sum(vocab: int) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    logits[::5] = -INF
    cumulative = logits.double().softmax(-1).cumsum(-1)
    for counter in range(50):
        u = ops.uniform(1, 0, counter)
        at = ops.draw(logits, u)
        before = float(cumulative[at - 1]) if at else 0.0
        assert before - 1e-6 <= u <= float(cumulative[at]) + 1e-6
        assert logits[at].isfinite()
    last = int(logits.isfinite().nonzero()[-1])
    assert ops.draw(logits, 1 - 2**-53) <= last
