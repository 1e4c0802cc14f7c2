"""C++ matrix products against the definition of each format, at odd sizes.

Limits: the result is bf16 (half a step is 0.002 of a value), weights are bf16 at worst, sums are fp32.
"""

from __future__ import annotations

import pytest
import torch
from cpu_cases import FORMATS, difference, random, variants, weight

from perilune.ops.linear import cpu
from perilune.ops.linear.formats import DenseWeight, Fp8BlockWeight
from perilune.ops.moe import cpu as moe_cpu
from perilune.ops.moe import reference as moe
from perilune.ops.native import KernelInputError, Native
from perilune.ops.norm import cpu as norm_cpu
from perilune.ops.norm import reference as norm

VARIANTS = variants()
LIMIT = 0.004
# 4-bit weights and few rows: activations are rounded to int8 per 32 inputs
BYTE_LIMIT = 0.01
BYTE_ROWS = 16
EXPERTS_LIMIT = 0.04  # both, two products deep and as few as 64 terms in a sum
SHAPES = [
    (1, 33, 64),
    (2, 1, 32),
    (3, 130, 100),
    (5, 7, 40),
    (6, 17, 288),
    (7, 70, 520),
    (17, 129, 1000),
    (300, 40, 96),
]

each_variant = pytest.mark.parametrize("native", VARIANTS, ids=lambda native: native.name)


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("tokens", "n", "k"), SHAPES)
def test_product_at_odd_sizes(native: Native, name: str, tokens: int, n: int, k: int) -> None:
    w, x = weight(name, n, k, seed=n), random(tokens, k, seed=k)
    expected = x.float() @ w.dequantise(torch.float32).T
    limit = BYTE_LIMIT if tokens <= BYTE_ROWS and name not in ("bf16", "fp8") else LIMIT
    assert difference(cpu.linear(native, x, w), expected) < limit


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [(1, 13), (20, 31)])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    native: Native, name: str, rows: tuple[int, int]
) -> None:
    """Below and above the number of rows where 4-bit weights leave byte products."""
    few, many = rows
    w, x = weight(name, 70, 544, seed=1), random(few * many if few > 1 else many, 544, seed=2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([cpu.linear(native, part, w) for part in x.split(few)])
        torch.set_num_threads(3)
        together = torch.cat([cpu.linear(native, part, w) for part in x.split(many)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)


@each_variant
def test_every_fp8_code_and_a_nan_scale_mean_what_the_reference_says(native: Native) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(8, 32)
    w = Fp8BlockWeight(codes.view(torch.float8_e4m3fn), torch.tensor([[0.5]]))
    ours = torch.stack([cpu.linear(native, row.view(1, -1), w)[0] for row in torch.eye(32).bfloat16()], dim=1)
    expected = w.dequantise(torch.bfloat16)
    finite = torch.isfinite(expected)
    # a NaN in a row spoils its sums, as it must
    rows = finite.all(dim=1)
    assert torch.equal(ours[rows], expected[rows])
    assert torch.isnan(ours[~rows]).all()


@each_variant
@pytest.mark.parametrize("name", ["bf16", "int4-32", "int4-32-zero", "mxfp4", "fp8"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_experts_some_without_tokens(native: Native, name: str, tokens: int) -> None:
    experts, hidden, width, top_k = 12, 96, 72 if name != "int4-32" else 64, 4
    gate, up = weight(name, experts, width, hidden, seed=1), weight(name, experts, width, hidden, seed=2)
    down = weight(name, experts, hidden, width, seed=3)
    g = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(experts - 3, generator=g)[:top_k] for _ in range(tokens)])
    weights, x = torch.rand(tokens, top_k, generator=g), random(tokens, hidden, seed=5)
    expected = moe.experts(x.float(), ids, weights, gate, up, down)
    assert difference(moe_cpu.experts(native, x, ids, weights, gate, up, down), expected) < EXPERTS_LIMIT
    ours = moe_cpu.swiglu(native, x, gate.expert(0), up.expert(0), down.expert(0))
    assert difference(ours, moe.swiglu(x.float(), gate.expert(0), up.expert(0), down.expert(0))) < EXPERTS_LIMIT


@each_variant
def test_experts_give_a_token_the_same_bits_in_any_batch(native: Native) -> None:
    """Any batch in which no expert sees more than BYTE_ROWS tokens, as in decode."""
    gate, up, down = (weight("int4-32", 8, 64, 64, seed=s) for s in (1, 2, 3))
    g = torch.Generator().manual_seed(0)
    x, ids = random(BYTE_ROWS, 64, seed=4), torch.randint(0, 8, (BYTE_ROWS, 1), generator=g) + torch.tensor([0, 1, 2])
    ids, weights = ids % 8, torch.rand(BYTE_ROWS, 3, generator=g)
    together = moe_cpu.experts(native, x, ids, weights, gate, up, down)
    for t in (0, 7, BYTE_ROWS - 1):
        one = slice(t, t + 1)
        assert torch.equal(moe_cpu.experts(native, x[one], ids[one], weights[one], gate, up, down), together[one])


@each_variant
@pytest.mark.parametrize("expert", [-1, 8, 2**40])
def test_an_expert_that_does_not_exist_is_refused(native: Native, expert: int) -> None:
    gate, up, down = (weight("bf16", 8, 32, 32, seed=s) for s in (1, 2, 3))
    ids = torch.tensor([[0, expert]])
    with pytest.raises(IndexError, match=f"expert {expert} is not in 0..7"):
        moe_cpu.experts(native, random(1, 32, seed=1), ids, torch.ones(1, 2), gate, up, down)


@each_variant
def test_wrong_tensors_are_refused(native: Native) -> None:
    w = weight("bf16", 8, 32, seed=1)
    with pytest.raises(KernelInputError, match="x is"):
        cpu.linear(native, random(1, 31, seed=1), w)
    with pytest.raises(KernelInputError, match="x is"):
        cpu.linear(native, torch.ones(1, 32), w)
    with pytest.raises(KernelInputError, match="float32"):
        cpu.linear(native, random(1, 32, seed=1), DenseWeight(torch.ones(8, 32)))


@each_variant
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (3, 72), (17, 100), (40, 2304)])
def test_rms_norm(native: Native, rows: int, dim: int) -> None:
    x, w = random(rows, dim, seed=1), random(dim, seed=2)
    assert difference(norm_cpu.rms_norm(native, x, w, 1e-5), norm.rms_norm(x, w, 1e-5)) < 0.002
