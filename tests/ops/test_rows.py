"""The row rule on this host: a row's bits depend neither on how many rows stand beside it nor on where it stands.

Widths of the golden models and of real ones, at one and at two threads. If this fails on a new machine, exactness
tests fail there too; this says which habit of its BLAS or vector unit is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.ops.linear.formats import DenseWeight
from perilune.ops.linear.reference import linear, linear_fp32
from perilune.ops.mla import reference as mla
from perilune.ops.moe import reference as moe
from perilune.ops.norm.reference import rms_norm
from perilune.ops.rows import pad_rows, pointwise, sum_last

BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 64, 65)
GOLDEN_SHAPES = [(64, 96), (448, 96), (12, 96), (40, 96), (96, 32), (128, 112), (160, 48), (256, 128), (1024, 128)]
REAL_SHAPES = [(2304, 1024), (1024, 2304), (576, 2304), (128, 2304), (32, 2304), (256, 2304), (384, 7168)]

FUNCTIONS = [F.softplus, F.silu, torch.sigmoid, torch.exp, torch.cos]
HEADS = [(4, 16, 16, 32), (32, 128, 128, 512), (20, 192, 256, 512)]


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_rows_alone(function: Callable[[Tensor], Tensor], x: Tensor, batches: tuple[int, ...] = BATCHES) -> None:
    """Every prefix batch, and every row alone at another position, gives the bits of the whole batch."""
    whole = function(x)
    for count in batches:
        assert torch.equal(function(x[:count]), whole[:count]), f"{count} rows"
        start = max(0, len(x) - count - 1)
        assert torch.equal(function(x[start : start + count]), whole[start : start + count]), f"rows from {start}"
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.equal(function(x[shuffled]), whole[shuffled])


@pytest.mark.parametrize(("n", "k"), GOLDEN_SHAPES + REAL_SHAPES)
def test_linear(n: int, k: int) -> None:
    weight = values(n, k, seed=1) / k**0.5
    assert_rows_alone(lambda x: linear(x, DenseWeight(weight)), values(BATCHES[-1] + 8, k))


@pytest.mark.parametrize(("n", "k"), [(64, 96), (448, 96), (1024, 2304)])
def test_linear_with_the_rows_of_a_prefill(n: int, k: int) -> None:
    weight = values(n, k, seed=1) / k**0.5
    assert_rows_alone(lambda x: linear(x, DenseWeight(weight)), values(576, k), (1, 64, 100, 129, 200, 320, 512, 515))


def test_linear_fp32_from_bfloat16() -> None:
    weight = values(12, 96, seed=1).bfloat16()
    assert_rows_alone(lambda x: linear_fp32(x, weight), values(73, 96).bfloat16())


@pytest.mark.parametrize("width", [1, 3, 16, 96, 97, 1024])
@pytest.mark.parametrize(
    "function", [F.softplus, F.silu, torch.sigmoid, torch.exp, torch.cos], ids=lambda f: f.__name__
)
def test_pointwise(function: Callable[[Tensor], Tensor], width: int) -> None:
    assert_rows_alone(lambda x: pointwise(function, x), values(73, width) * 5)


def test_pointwise_of_a_view_keeps_shape_and_order() -> None:
    x = values(6, 5, 4).permute(2, 0, 1)
    assert torch.allclose(pointwise(torch.exp, x), x.exp())


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_sum_last(width: int) -> None:
    x = values(73, width) * 10
    assert torch.allclose(sum_last(x), x.sum(-1), atol=1e-4)
    assert_rows_alone(sum_last, x)


@pytest.mark.parametrize("width", [32, 80, 96, 112, 128, 512, 2304, 7168])
def test_rms_norm(width: int) -> None:
    weight = values(width, seed=2)
    assert_rows_alone(lambda x: rms_norm(x, weight, 1e-5), values(73, width))


@pytest.mark.parametrize(("experts", "groups"), [(12, 1), (64, 4), (256, 8)])
def test_routing(experts: int, groups: int) -> None:
    router, bias = values(experts, 96, seed=3), values(experts, seed=4) / 10

    def route(x: Tensor) -> Tensor:
        ids, weights = moe.route(x, router, bias, top_k=4, groups=groups, top_groups=max(1, groups // 2), scaling=2.4)
        return torch.cat([ids.float(), weights], dim=-1)

    assert_rows_alone(route, values(73, 96))


def test_experts() -> None:
    router, bias = values(6, 96, seed=3), torch.zeros(6)
    gate, up, down = (DenseWeight(values(6, *shape, seed=5)) for shape in ((32, 96), (32, 96), (96, 32)))

    def layer(x: Tensor) -> Tensor:
        ids, weights = moe.route(x, router, bias, top_k=2)
        return moe.experts(x, ids, weights, gate, up, down)

    assert_rows_alone(layer, values(73, 96))


@pytest.mark.parametrize(
    ("heads", "nope", "v_dim", "rank"), [(4, 16, 16, 32), (32, 128, 128, 512), (20, 192, 256, 512)]
)
def test_absorbed_projections(heads: int, nope: int, v_dim: int, rank: int) -> None:
    kv_b = DenseWeight(values(heads * (nope + v_dim), rank, seed=6) / rank**0.5)
    assert_rows_alone(lambda q: mla.absorb_query(q, kv_b, v_dim), values(73, heads, nope))
    assert_rows_alone(lambda c: mla.expand_value(c, kv_b, v_dim), values(73, heads, rank))


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9])
def test_padding_adds_zeros_only_in_fp32(rows: int) -> None:
    padded = pad_rows(values(rows, 5))
    assert padded.shape == (-(-rows // 8) * 8, 5)
    assert not padded[rows:].any()
    assert pad_rows(values(rows, 5).bfloat16()).shape == (rows, 5)
