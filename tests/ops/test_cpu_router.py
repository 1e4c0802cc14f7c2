"""The C++ router against its reference, at odd sizes."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import difference, random, variants
from torch import Tensor

from perilune.ops.moe import cpu_router, reference
from perilune.ops.native import KernelInputError, Native

VARIANTS = variants()
each_variant = pytest.mark.parametrize("native", VARIANTS, ids=lambda native: native.name)

CASES = [  # tokens, dim, experts, groups, kept groups, top k
    (1, 64, 8, 1, 1, 2),
    (3, 40, 12, 4, 2, 3),
    (17, 100, 33, 1, 1, 8),
    (70, 256, 256, 8, 4, 8),
    (2, 31, 5, 1, 1, 5),
    (65, 33, 64, 2, 1, 4),
]


def spread(ids: Tensor, weights: Tensor, experts: int) -> Tensor:
    """[T, E]: the weight of each expert, zero where it was not chosen. The order of choices does not show."""
    return torch.zeros(ids.shape[0], experts).scatter_add(1, ids, weights)


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "dim", "experts", "groups", "kept", "top_k"), CASES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_the_same_experts_with_the_same_weights(
    native: Native,
    dtype: torch.dtype,
    tokens: int,
    dim: int,
    experts: int,
    groups: int,
    kept: int,
    top_k: int,
    renormalise: bool,
) -> None:
    x, router = random(tokens, dim, seed=1), (random(experts, dim, seed=2) / dim**0.5).to(dtype)
    bias = torch.rand(experts, generator=torch.Generator().manual_seed(3))  # apart, so that no two experts tie
    rules = {"top_k": top_k, "groups": groups, "top_groups": kept, "renormalise": renormalise, "scaling": 2.5}
    ids, weights = cpu_router.route(native, x, router, bias, **rules)
    expected = spread(*reference.route(x, router, bias, **rules), experts)
    assert weights.dtype == torch.float32
    assert difference(spread(ids, weights, experts), expected) < 1e-5


@each_variant
def test_negative_biased_scores_do_not_lose_to_groups_left_out(native: Native) -> None:
    x, router = random(4, 32, seed=1), random(8, 32, seed=2) / 8
    bias = -torch.rand(8, generator=torch.Generator().manual_seed(3)) - 2
    rules = {"top_k": 2, "groups": 2, "top_groups": 1}
    ids, weights = cpu_router.route(native, x, router, bias, **rules)
    assert (ids // 4 == ids[:, :1] // 4).all()
    assert difference(spread(ids, weights, 8), spread(*reference.route(x, router, bias, **rules), 8)) < 1e-5


@each_variant
def test_nan_and_ties_still_give_experts_that_exist(native: Native) -> None:
    x, router = random(3, 32, seed=1), torch.zeros(6, 32).bfloat16()
    x[1] = float("nan")
    ids, weights = cpu_router.route(native, x, router, torch.zeros(6), top_k=4)
    assert ((ids >= 0) & (ids < 6)).all()
    assert ids[0].tolist() == [0, 1, 2, 3]
    assert torch.isnan(weights[1]).all()


@each_variant
def test_any_number_of_threads_and_tokens_gives_the_same_bits(native: Native) -> None:
    x, router, bias = random(70, 96, seed=1), random(40, 96, seed=2) / 10, torch.rand(40)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(cpu_router.route(native, x, router, bias, top_k=4))
    finally:
        torch.set_num_threads(before)
    alone = cpu_router.route(native, x[69:], router, bias, top_k=4)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(alone[1][0], results[0][1][69])


@each_variant
def test_impossible_rules_are_refused(native: Native) -> None:
    x, router = random(1, 32, seed=1), random(6, 32, seed=2)
    for rules in (
        {"top_k": 7},
        {"top_k": 0},
        {"top_k": 1, "groups": 4, "top_groups": 1},
        {"top_k": 1, "groups": 3, "top_groups": 4},
    ):
        with pytest.raises(ValueError):
            cpu_router.route(native, x, router, torch.zeros(6), **rules)
    with pytest.raises(KernelInputError):
        cpu_router.route(native, x, router, torch.zeros(5), top_k=1)
