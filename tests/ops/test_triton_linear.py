"""Matrix products, router, experts and norms in Triton's interpreter, against their references at odd sizes."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import FORMATS, difference, random, weight

from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Gpu
from perilune.ops.linear import reference as linear
from perilune.ops.linear import triton as ours
from perilune.ops.moe import reference as moe
from perilune.ops.moe import triton as moe_triton
from perilune.ops.norm import reference as norm
from perilune.ops.norm import triton as norm_triton

GPUS = [Gpu(ARCHES["gfx1151"]), Gpu(ARCHES["sm_90"])]


@pytest.fixture(params=GPUS, ids=lambda gpu: gpu.arch.name)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return request.param


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [1, 17])
def test_a_product_of_every_format_rounds_as_the_reference(gpu: Gpu, form: str, rows: int) -> None:
    x, w = random(rows, 256, seed=1), weight(form, 40, 256, seed=2)
    assert difference(ours.linear(gpu, x, w), linear.linear(x, w)) < 2e-3


def test_products_of_one_input_lie_side_by_side_and_inputs_need_not_fill_a_tile(gpu: Gpu) -> None:
    x = random(5, 3 * 96, seed=3)[:, 96:192]  # rows lie apart
    groups = [[weight("bf16", n, 96, seed=n) for n in (24, 8)], [weight("int4-32", 33, 96, seed=7)]]
    for out, expected in zip(ours.linears(gpu, x, groups), linear.linears(x, groups), strict=True):
        assert out.shape == expected.shape
        assert difference(out, expected) < 2e-3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", [3, 90])
def test_experts_of_every_format(form: str, rows: int) -> None:
    gpu = GPUS[0]
    g = torch.Generator().manual_seed(rows)
    x, shares = random(rows, 64, seed=1), torch.rand(rows, 2, generator=g)
    ids = torch.stack([torch.randperm(5, generator=g)[:2] for _ in range(rows)])
    gate, up, down = (weight(form, 5, *shape, seed=s) for s, shape in enumerate([(40, 64), (40, 64), (64, 40)]))
    if "128" not in form and "zero" not in form:
        one = gate.expert(1), up.expert(1), down.expert(1)
        assert difference(moe_triton.swiglu(gpu, x, *one), moe.swiglu(x, *one)) < 5e-3
    result = moe_triton.experts(gpu, x, ids, shares, gate, up, down)
    assert difference(result, moe.experts(x, ids, shares, gate, up, down)) < 5e-3


def test_experts_in_use_only_and_all_tokens_at_one() -> None:
    x, shares, ids = random(20, 32, seed=1), torch.ones(20, 1), torch.full((20, 1), 3)
    stacks = [weight("bf16", 7, *shape, seed=s) for s, shape in enumerate([(16, 32), (16, 32), (32, 16)])]
    result = moe_triton.experts(GPUS[0], x, ids, shares, *stacks)
    assert difference(result, moe.experts(x, ids, shares, *stacks)) < 5e-3


def test_pairs_of_another_ranks_experts_add_nothing() -> None:
    x, shares, ids = random(4, 32, seed=1), torch.ones(4, 2), torch.tensor([[0, -1], [-1, -1], [2, 0], [-1, 1]])
    stacks = [weight("bf16", 3, *shape, seed=s) for s, shape in enumerate([(16, 32), (16, 32), (32, 16)])]
    result = moe_triton.experts(GPUS[0], x, ids, shares, *stacks)
    assert difference(result, moe.experts(x, ids, shares, *stacks)) < 5e-3
    assert not result[1].any()


@pytest.mark.parametrize(("experts", "groups", "kept"), [(12, 1, 1), (24, 4, 2), (256, 8, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_router_picks_the_same_experts_and_keeps_every_bit_of_its_weight(
    experts: int, groups: int, kept: int, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(experts)
    x, bias = random(5, 96, seed=3), torch.rand(experts, generator=g) - 0.6  # biased scores may be negative
    router = (torch.randn(experts, 96, generator=g) / 9).to(dtype)
    for renormalise in (True, False):
        asked = {"top_k": 4, "groups": groups, "top_groups": kept, "renormalise": renormalise, "scaling": 2.4}
        ids, weights = moe_triton.route(GPUS[0], x, router, bias, **asked)
        expected_ids, expected = moe.route(x, router, bias, **asked)
        assert torch.equal(ids, expected_ids)
        assert difference(weights, expected) < 1e-6


def test_a_router_of_nan_names_an_expert_there_is() -> None:
    x, router = random(1, 32, seed=1), torch.full((6, 32), float("nan"))
    ids, _ = moe_triton.route(GPUS[0], x, router, torch.zeros(6), top_k=2)
    assert ids.min() >= 0
    assert ids.max() < 6


@pytest.mark.parametrize("dim", [16, 96, 513])
def test_rms_norm_is_the_references_bit_for_bit_or_a_rounding_away(dim: int) -> None:
    x, w = random(3, 2 * dim, seed=dim)[:, :dim], random(dim, seed=1)
    assert difference(norm_triton.rms_norm(GPUS[0], x, w, 1e-5), norm.rms_norm(x, w, 1e-5)) < 1e-3


def test_a_sum_and_its_norm_are_the_references() -> None:
    x, part, w = random(3, 90, seed=1), random(3, 90, seed=2), random(90, seed=3)
    total, normed = norm.add_norm(x, part, w, 1e-5)
    ours, own = norm_triton.add_norm(GPUS[0], x.clone(), part, w, 1e-5)
    assert torch.equal(ours, total)
    assert difference(own, normed) < 1e-3
