"""Routing rules and expert sums, each against the formula written out per token."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from perilune.ops.linear.formats import DenseWeight
from perilune.ops.moe import reference as moe


def logits_router(scores: list[list[float]]) -> tuple[Tensor, Tensor]:
    """x and router whose sigmoid scores are `scores` [T][E]."""
    wanted = torch.tensor(scores).logit()
    return torch.eye(len(scores)), wanted.T.contiguous()


def route_by_hand(
    scores: list[float], bias: list[float], top_k: int, groups: int, top_groups: int, renormalise: bool, scaling: float
) -> dict[int, float]:
    biased = [a + b for a, b in zip(scores, bias, strict=True)]
    size = len(scores) // groups
    members = [list(range(g * size, (g + 1) * size)) for g in range(groups)]
    strength = [sum(sorted((biased[e] for e in group), reverse=True)[:2]) for group in members]
    kept = sorted(range(groups), key=lambda g: -strength[g])[:top_groups] if groups > 1 else range(groups)
    allowed = [e for g in kept for e in members[g]]
    chosen = sorted(allowed, key=lambda e: -biased[e])[:top_k]
    total = sum(scores[e] for e in chosen) if renormalise else 1.0
    return {e: scores[e] / total * scaling for e in chosen}


def no_groups_tie(scores: list[float], bias: list[float], groups: int) -> bool:
    """Sums of two can be equal where no two experts are; which group wins is then rounding's choice."""
    biased = [a + b for a, b in zip(scores, bias, strict=True)]
    size = len(biased) // groups
    strength = sorted(sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups))
    return all(b - a > 1e-5 for a, b in pairwise(strength))


distinct = st.lists(st.integers(1, 999), min_size=12, max_size=12, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    points=distinct,
    offsets=distinct,
    top_k=st.integers(1, 4),
    grouping=st.sampled_from([(1, 1), (2, 1), (3, 2), (4, 4)]),
    renormalise=st.booleans(),
)
def test_routing_equals_the_rules(
    points: list[int], offsets: list[int], top_k: int, grouping: tuple[int, int], renormalise: bool
) -> None:
    """Scores are whole thousandths and biases odd half-thousandths from a wide range below zero: no experts tie."""
    groups, top_groups = grouping
    scores = [p / 1000 for p in points]
    bias = [-2 + o * 0.00317 for o in offsets]
    x, router = logits_router([scores])
    ids, weights = moe.route(
        x, router, torch.tensor(bias), top_k=top_k, groups=groups, top_groups=top_groups,
        renormalise=renormalise, scaling=2.446,
    )  # fmt: skip
    expected = route_by_hand(scores, bias, top_k, groups, top_groups, renormalise, 2.446)
    assume(no_groups_tie(scores, bias, groups))
    found = dict(zip(ids[0].tolist(), weights[0].tolist(), strict=True))
    assert found.keys() == expected.keys()
    for expert, weight in expected.items():
        assert abs(found[expert] - weight) < 1e-4


def test_bias_chooses_but_never_weighs() -> None:
    x, router = logits_router([[0.9, 0.8, 0.1, 0.2]])
    ids, weights = moe.route(x, router, torch.tensor([0.0, 0.0, 5.0, -1.0]), top_k=2, renormalise=False)
    assert ids[0].tolist() == [2, 0]
    assert torch.allclose(weights, torch.tensor([[0.1, 0.9]]))


def test_a_dropped_group_loses_even_to_negative_scores() -> None:
    """With zeros instead of -inf the dropped experts would win here."""
    x, router = logits_router([[0.5, 0.5, 0.4, 0.4]])
    bias = torch.tensor([-1.0, -1.1, -3.0, -3.1])
    ids, _ = moe.route(x, router, bias, top_k=2, groups=2, top_groups=1)
    assert sorted(ids[0].tolist()) == [0, 1]


def test_a_group_is_judged_by_its_two_best() -> None:
    x, router = logits_router([[0.9, 0.1, 0.1, 0.6, 0.6, 0.1]])
    ids, _ = moe.route(x, router, torch.zeros(6), top_k=1, groups=2, top_groups=1)
    assert ids[0].tolist()[0] in (3, 4)


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_equal_scores_still_give_distinct_experts_with_equal_weights(top_k: int) -> None:
    ids, weights = moe.route(torch.zeros(5, 4), torch.ones(8, 4), torch.zeros(8), top_k=top_k, scaling=2.0)
    for row in ids.tolist():
        assert len(set(row)) == top_k
    assert torch.allclose(weights, torch.full((5, top_k), 2.0 / top_k))
    again, _ = moe.route(torch.zeros(5, 4), torch.ones(8, 4), torch.zeros(8), top_k=top_k, scaling=2.0)
    assert torch.equal(ids, again)


def test_routing_is_fp32_whatever_the_model_computes_in() -> None:
    """A margin that bfloat16 cannot hold decides."""
    router = torch.tensor([[1.0, 0.001], [1.0, 0.0]])
    ids, weights = moe.route(torch.ones(1, 2).bfloat16(), router, torch.zeros(2), top_k=1)
    assert ids.item() == 0
    assert weights.dtype == torch.float32


def test_all_scores_near_zero_do_not_divide_by_zero() -> None:
    ids, weights = moe.route(torch.ones(1, 1), torch.full((4, 1), -200.0), torch.zeros(4), top_k=2)
    assert torch.isfinite(weights).all()
    assert len(set(ids[0].tolist())) == 2


def test_experts_equal_the_sum_written_out() -> None:
    random = torch.Generator().manual_seed(0)
    experts, width, hidden, tokens = 5, 6, 7, 11
    gate, up = (torch.randn(experts, width, hidden, generator=random) for _ in range(2))
    down = torch.randn(experts, hidden, width, generator=random)
    x = torch.randn(tokens, hidden, generator=random)
    ids = torch.stack([torch.randperm(experts, generator=random)[:3] for _ in range(tokens)])
    weights = torch.rand(tokens, 3, generator=random)
    out = moe.experts(x, ids, weights, DenseWeight(gate), DenseWeight(up), DenseWeight(down))
    for t in range(tokens):
        expected = torch.zeros(hidden)
        for e, w in zip(ids[t].tolist(), weights[t].tolist(), strict=True):
            expected += w * (down[e] @ (torch.nn.functional.silu(gate[e] @ x[t]) * (up[e] @ x[t])))
        assert torch.allclose(out[t], expected, atol=1e-4)


def test_an_expert_of_another_rank_adds_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    stacks = [DenseWeight(torch.randn(2, 4, 4, generator=random)) for _ in range(3)]
    x, weights = torch.randn(3, 4, generator=random), torch.ones(3, 2)
    out = moe.experts(x, torch.tensor([[0, -1], [-1, -1], [1, 0]]), weights, *stacks)
    only = moe.experts(x, torch.tensor([[0], [0], [0]]), torch.tensor([[1.0], [0.0], [1.0]]), *stacks)
    assert torch.equal(out[0], only[0])
    assert not out[1].any()
    assert out[2].any()
