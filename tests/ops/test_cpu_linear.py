"""C++ matrix products against the definition of each format, at odd sizes.

Limits: the result is bf16 (half a step is 0.002 of a value), weights are bf16 at worst, sums are fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cpu_cases import FORMATS, difference, random, variants, weight
from torch import Tensor

from perilune.ops.linear import cpu
from perilune.ops.linear.formats import DenseWeight, Fp8BlockWeight, Mxfp4Weight, TiledWeight, tile
from perilune.ops.moe import cpu as moe_cpu
from perilune.ops.moe import reference as moe
from perilune.ops.native import KernelInputError, Native
from perilune.ops.norm import cpu as norm_cpu
from perilune.ops.norm import reference as norm

VARIANTS = variants()
LIMIT = 0.004
# weights of 4 and 8 bits in strips: activations are rounded to int8 per 32 inputs
BYTE_LIMIT = 0.01
BYTES = [name for name in FORMATS if name not in ("bf16", "fp8")]
EXPERTS_LIMIT = 0.04  # two products deep and as few as 64 terms in a sum
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
STRIP_SHAPES = [
    *((rows, 32 * (1 + rows % 3), 32 * rows) for rows in range(1, 18)),
    (40, 288, 64),
    (129, 32, 544),
    (300, 96, 1056),
]

each_variant = pytest.mark.parametrize("native", VARIANTS, ids=lambda native: native.name)


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("tokens", "n", "k"), SHAPES)
def test_product_at_odd_sizes(native: Native, name: str, tokens: int, n: int, k: int) -> None:
    w, x = weight(name, n, k, seed=n), random(tokens, k, seed=k)
    expected = x.float() @ w.dequantise(torch.float32).T
    assert difference(cpu.linear(native, x, w), expected) < LIMIT


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("tokens", "n", "k"), STRIP_SHAPES)
def test_product_in_strips(native: Native, name: str, tokens: int, n: int, k: int) -> None:
    w, x = weight(name, n, k, seed=n), random(tokens, k, seed=k)
    expected = x.float() @ w.dequantise(torch.float32).T
    limit = BYTE_LIMIT if name in BYTES else LIMIT
    assert difference(cpu.linear(native, x, tile(w)), expected) < limit


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("strips", [False, True])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    native: Native, name: str, strips: bool
) -> None:
    w, x = weight(name, 96, 3072, seed=1), random(300, 3072, seed=2)  # enough products to be shared among threads
    if strips:
        w = tile(w)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = cpu.linear(native, x, w)
        torch.set_num_threads(3)
        assert torch.equal(cpu.linear(native, x, w), together)
        for rows in (1, 2, 3, 5, 7, 11, 13, 15, 17, 20, 31):
            assert torch.equal(cpu.linear(native, x[40 : 40 + rows], w), together[40 : 40 + rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", BYTES)
def test_products_of_bytes_have_the_same_bits_on_every_instruction_set(name: str) -> None:
    w, x = tile(weight(name, 64, 544, seed=1)), random(17, 544, seed=2)
    first, *others = (cpu.linear(native, x, w) for native in VARIANTS)
    for other in others:
        assert torch.equal(other, first)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(32, 32), (96, 160), (3, 64, 544)])
def test_strips_hold_the_same_weight_in_the_same_place(name: str, shape: tuple[int, ...]) -> None:
    w = weight(name, *shape, seed=1)
    expected, where = w.dequantise(torch.float32).clone(), {n: t.data_ptr() for n, t in w.tensors.items()}
    tiled = tile(w)
    assert isinstance(tiled, TiledWeight)
    assert tile(tiled) is tiled
    assert {n: t.data_ptr() for n, t in tiled.tensors.items()} == where
    assert torch.equal(tiled.dequantise(torch.float32), expected)
    if len(shape) == 3:
        assert torch.equal(tiled.expert(1).dequantise(torch.float32), expected[1])


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(32, 32), (96, 160), (3, 64, 544)])
def test_the_kernel_that_lays_out_strips_moves_every_byte_as_its_definition(
    native: Native, name: str, shape: tuple[int, ...]
) -> None:
    expected, ours = tile(weight(name, *shape, seed=1)), cpu.prepare(native, weight(name, *shape, seed=1))
    for key, tensor in expected.tensors.items():
        assert torch.equal(ours.tensors[key].view(torch.uint8), tensor.view(torch.uint8)), key


def test_a_weight_that_does_not_fit_strips_stays_as_it_is() -> None:
    for w in (weight("bf16", 48, 64, seed=1), weight("mxfp4", 64, 48, seed=1), DenseWeight(torch.ones(32, 32))):
        assert tile(w) is w


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
def test_every_fp8_code_means_the_same_in_strips(native: Native) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(32, 1)  # an input for each code, one output like another
    w = tile(Fp8BlockWeight(codes.clone().view(torch.float8_e4m3fn), torch.tensor([[0.5, 0.25]])))
    ours = torch.stack([cpu.linear(native, row.view(1, -1), w)[0] for row in torch.eye(256).bfloat16()], dim=1)
    # a NaN spoils every sum it is in, so the codes without it once more
    assert torch.isnan(ours).all()
    finite = codes.clone()
    finite[:, [0x7F, 0xFF]] = 0
    w = Fp8BlockWeight(finite.view(torch.float8_e4m3fn), torch.tensor([[0.5, 0.25]]))
    expected = w.dequantise(torch.bfloat16)
    w = tile(w)
    ours = torch.stack([cpu.linear(native, row.view(1, -1), w)[0] for row in torch.eye(256).bfloat16()], dim=1)
    assert torch.equal(ours, expected)


@each_variant
def test_every_mxfp4_code_and_scale_means_the_same_in_strips(native: Native) -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    packed = (codes[0::2] | codes[1::2] << 4).repeat(32, 2)
    for scale in (0, 1, 100, 127, 200, 230):
        w = Mxfp4Weight(packed.clone(), torch.full((32, 1), scale, dtype=torch.uint8))
        x = torch.eye(32).bfloat16() * 127 * 2.0 ** (120 - scale if scale > 2 else 60)  # exact in bytes
        expected = (x.double() @ w.dequantise(torch.float32).double().T).float()
        ours = cpu.linear(native, x, tile(w)).float()
        assert torch.equal(ours, expected.bfloat16().float()), scale
    w = Mxfp4Weight(packed.clone(), torch.full((32, 1), 255, dtype=torch.uint8))
    assert torch.isnan(cpu.linear(native, random(2, 32, seed=1), tile(w))).all()


@each_variant
@pytest.mark.parametrize("name", ["bf16", "int4-32", "int4-32-zero", "mxfp4", "fp8", "int8-32"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize("strips", [False, True])
def test_experts_some_without_tokens(native: Native, name: str, tokens: int, strips: bool) -> None:
    experts, hidden, width, top_k = 12, 96, 64 if strips or name == "int4-32" else 72, 4
    gate, up = weight(name, experts, width, hidden, seed=1), weight(name, experts, width, hidden, seed=2)
    down = weight(name, experts, hidden, width, seed=3)
    g = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(experts - 3, generator=g)[:top_k] for _ in range(tokens)])
    weights, x = torch.rand(tokens, top_k, generator=g), random(tokens, hidden, seed=5)
    expected = moe.experts(x.float(), ids, weights, gate, up, down)
    alone = moe.swiglu(x.float(), gate.expert(0), up.expert(0), down.expert(0))
    if strips:
        gate, up, down = tile(gate), tile(up), tile(down)
    assert difference(moe_cpu.experts(native, x, ids, weights, gate, up, down), expected) < EXPERTS_LIMIT
    ours = moe_cpu.swiglu(native, x, gate.expert(0), up.expert(0), down.expert(0))
    assert difference(ours, alone) < EXPERTS_LIMIT


@each_variant
def test_experts_whose_matrices_are_stored_in_different_formats(native: Native) -> None:
    """Gate, up and down each want their own form of a row."""
    parts = [weight(name, 4, 64, 64, seed=i) for i, name in enumerate(("int4-32", "bf16", "mxfp4"))]
    x, ids, weights = random(9, 64, seed=5), torch.arange(18).view(9, 2) % 4, torch.ones(9, 2)
    expected = moe.experts(x.float(), ids, weights, *parts)
    tiled = [tile(part) for part in parts]
    assert difference(moe_cpu.experts(native, x, ids, weights, *tiled), expected) < EXPERTS_LIMIT


@each_variant
@pytest.mark.parametrize("name", ["int4-32", "bf16"])
def test_experts_give_a_token_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    native: Native, name: str
) -> None:
    gate, up = (tile(weight(name, 8, 160, 256, seed=s)) for s in (1, 2))
    down = tile(weight(name, 8, 256, 160, seed=3))
    g = torch.Generator().manual_seed(0)
    x, ids = random(400, 256, seed=4), torch.randint(0, 8, (400, 1), generator=g) + torch.tensor([0, 1, 2])
    ids, weights = ids % 8, torch.rand(400, 3, generator=g)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = moe_cpu.experts(native, x, ids, weights, gate, up, down)
        torch.set_num_threads(3)
        assert torch.equal(moe_cpu.experts(native, x, ids, weights, gate, up, down), together)
        for rows in (slice(0, 1), slice(7, 9), slice(3, 40), slice(399, 400)):
            some = moe_cpu.experts(native, x[rows], ids[rows], weights[rows], gate, up, down)
            assert torch.equal(some, together[rows])
    finally:
        torch.set_num_threads(before)


@each_variant
@pytest.mark.parametrize("strips", [False, True])
def test_an_expert_of_another_rank_adds_nothing(native: Native, strips: bool) -> None:
    parts = [weight("int4-32", 4, 64, 64, seed=i) for i in range(3)]
    x, ids, weights = (
        random(5, 64, seed=5),
        torch.tensor([[0, 3], [-1, 2], [1, -1], [-1, -1], [3, 0]]),
        torch.ones(5, 2),
    )
    expected = moe.experts(x.float(), ids, weights, *parts)
    assert not expected[3].any()
    ours = moe_cpu.experts(native, x, ids, weights, *(map(tile, parts) if strips else parts))
    assert difference(ours, expected) < EXPERTS_LIMIT
    assert not ours[3].any()


@each_variant
@pytest.mark.parametrize("expert", [-2, 8, 2**40])
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


@each_variant
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_several_products_of_one_input_are_the_single_ones_side_by_side(native: Native, tokens: int) -> None:
    """Also of matrices of several formats, in strips and as stored."""
    names = ("int4-32", "bf16", "mxfp4", "int4-32", "fp8", "int8-128")
    weights = [weight(name, 32 * (1 + i), 320, seed=i) for i, name in enumerate(names)]
    weights = [*map(tile, weights), weight("int4-32", 7, 320, seed=9)]
    x = random(tokens, 320, seed=1)
    groups = [[weights[0], weights[3], weights[6]], [weights[1]], [weights[2], weights[4]], [weights[5]]]
    for group, out in zip(groups, cpu.linears(native, x, groups), strict=True):
        assert torch.equal(out, torch.cat([cpu.linear(native, x, w) for w in group], dim=-1))
    with pytest.raises(ValueError, match="does not fit"):
        cpu.linears(native, x, [[weights[0], weight("bf16", 32, 64, seed=1)]])


def test_the_kernels_view_of_a_weight_is_made_once_and_goes_with_it() -> None:
    native = VARIANTS[0]
    first = weight("int4-32", 33, 64, seed=0)
    moved = first.map(Tensor.clone)
    x = random(2, 64, seed=1)
    assert native.weight(first) is native.weight(first)
    assert native.weight(moved) is not native.weight(first)
    for tensor in first.tensors.values():
        tensor.zero_()
    assert not cpu.linear(native, x, first).any()
    assert cpu.linear(native, x, moved).any()
    del first
    assert len(native._handles) == 1
