"""Packed weights against formulas written out element by element, and against the tool that makes them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_files import quantise_fp8, quantise_int4
from torch import Tensor

from perilune.ops.linear.formats import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Mxfp4Weight,
    Weight,
    e8m0_to_float,
    pack_int4,
    stack,
    unpack_int4,
)

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def int4(rows: int, columns: int, group: int, *, symmetric: bool, seed: int = 0) -> Int4Weight:
    q, scale, zero = quantise_int4(random(rows, columns, seed), group, symmetric=symmetric)
    return Int4Weight(pack_int4(q), scale, zero, group, columns if columns % 8 else None)


def mxfp4(rows: int, columns: int, seed: int = 0) -> Mxfp4Weight:
    draw = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, columns // 2), generator=draw).to(torch.uint8)
    return Mxfp4Weight(packed, torch.randint(100, 140, (rows, -(-columns // 32)), generator=draw).to(torch.uint8))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=70))
def test_packing_int4_loses_nothing_and_puts_the_low_nibble_first(codes: list[int]) -> None:
    packed = pack_int4(torch.tensor([codes], dtype=torch.int8))
    assert packed.shape == (1, math.ceil(len(codes) / 8))
    assert packed.dtype == torch.int32
    words = [word & 0xFFFFFFFF for word in packed[0].tolist()]
    assert [((words[i // 8] >> 4 * (i % 8)) & 15) - 8 for i in range(len(codes))] == codes
    assert unpack_int4(packed, len(codes))[0].tolist() == codes


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("columns", "group"), [(96, 32), (256, 128), (128, 128), (104, 32), (200, 128), (33, 32)])
def test_int4_is_code_minus_zero_times_scale_in_bfloat16(columns: int, group: int, symmetric: bool) -> None:
    q, scale, zero = quantise_int4(random(5, columns), group, symmetric=symmetric)
    weight = Int4Weight(pack_int4(q), scale, zero, group, columns if columns % 8 else None)
    assert weight.shape == (5, columns)
    expected = torch.empty(5, columns, dtype=torch.bfloat16)
    for n in range(5):
        for k in range(columns):
            offset = 0 if zero is None else int(zero[n, k // group])
            expected[n, k] = (int(q[n, k]) - offset) * float(scale[n, k // group])
    assert same_bits(weight.dequantise(torch.bfloat16), expected)
    assert same_bits(weight.dequantise(torch.float32), expected.float())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group", [32, 128])
def test_int4_equals_the_compressed_tensors_package(group: int, symmetric: bool) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = random(24, 256).bfloat16()
    _, scale, zero = quantise_int4(weight, group, symmetric=symmetric)
    parts = {"weight": weight, "weight_scale": scale} | ({} if zero is None else {"weight_zero_point": zero})
    packed = PackedQuantizationCompressor.compress(parts, scheme)
    theirs = PackedQuantizationCompressor.decompress(dict(packed), scheme)["weight"]
    stored_zero = None if zero is None else unpack_int4(packed["weight_zero_point"].T, 24).T
    assert zero is None or same_bits(stored_zero.contiguous(), zero)
    ours = Int4Weight(packed["weight_packed"], scale, stored_zero, group)
    assert same_bits(ours.dequantise(torch.bfloat16), theirs)


def test_mxfp4_has_every_value_at_every_scale() -> None:
    packed = torch.tensor([[low | high << 4 for low, high in zip(range(0, 16, 2), range(1, 16, 2), strict=True)]])
    scales = torch.arange(256, dtype=torch.uint8)[:, None]
    weight = Mxfp4Weight(packed.to(torch.uint8).repeat(256, 1), scales)
    found = weight.dequantise(torch.float32)
    assert found.shape == (256, 16)
    assert found[255].isnan().all()
    for byte in range(253):
        expected = [(-1 if code & 8 else 1) * E2M1[code & 7] * 2.0 ** (byte - 127) for code in range(16)]
        assert found[byte].tolist() == expected, byte


@pytest.mark.parametrize("columns", [32, 64, 80, 2])
def test_mxfp4_takes_its_scale_from_the_block_of_32(columns: int) -> None:
    weight = mxfp4(3, columns)
    found = weight.dequantise(torch.float32)
    assert weight.shape == (3, columns)
    for n in range(3):
        for k in range(columns):
            code = int(weight.packed[n, k // 2]) >> (4 * (k % 2)) & 15
            value = E2M1[code & 7] * (-1 if code & 8 else 1)
            assert float(found[n, k]) == value * 2.0 ** (int(weight.scale[n, k // 32]) - 127)


def test_mxfp4_equals_the_compressed_tensors_package() -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import MXFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = random(16, 96).bfloat16()
    scale = 2.0 ** (weight.unflatten(1, (3, 32)).abs().amax(-1).log2().floor() - 2)
    packed = MXFP4PackedCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    theirs = MXFP4PackedCompressor.decompress(dict(packed), scheme)["weight"]
    ours = Mxfp4Weight(packed["weight_packed"], packed["weight_scale"]).dequantise(theirs.dtype)
    assert torch.equal(ours, theirs)


def test_e8m0_covers_every_byte_exactly() -> None:
    found = e8m0_to_float(torch.arange(256, dtype=torch.uint8))
    assert found[255].isnan()
    assert found[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (256, 384), (130, 129), (576, 200), (1, 1), (127, 300)])
def test_fp8_multiplies_each_128_block_including_short_ones(rows: int, columns: int) -> None:
    data, scale = quantise_fp8(random(rows, columns))
    assert scale.shape == (math.ceil(rows / 128), math.ceil(columns / 128))
    weight = Fp8BlockWeight(data, scale)
    expected = torch.empty(rows, columns)
    for i in range(0, rows, 128):
        for j in range(0, columns, 128):
            expected[i : i + 128, j : j + 128] = data[i : i + 128, j : j + 128].float() * scale[i // 128, j // 128]
    assert weight.shape == (rows, columns)
    assert same_bits(weight.dequantise(torch.float32), expected)
    assert same_bits(weight.dequantise(torch.bfloat16), expected.bfloat16())


def test_dense_weights_are_handed_out_without_a_copy() -> None:
    data = random(4, 6)
    weight = DenseWeight(data)
    assert weight.dequantise(torch.float32) is data
    assert weight.shape == (4, 6)
    assert weight.nbytes == 96


def make(kind: str, seed: int) -> Weight:
    if kind == "dense":
        return DenseWeight(random(24, 160, seed))
    if kind == "mxfp4":
        return mxfp4(24, 160, seed)
    if kind == "fp8":
        return Fp8BlockWeight(*quantise_fp8(random(24, 160, seed)))
    return int4(24, 160, 128 if kind == "int4 short group" else 32, symmetric=kind != "int4 asymmetric", seed=seed)


KINDS = ["dense", "mxfp4", "fp8", "int4", "int4 asymmetric", "int4 short group"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_holds_its_experts_bit_for_bit(kind: str) -> None:
    experts = [make(kind, seed) for seed in range(3)]
    stacked = stack(experts)
    assert stacked.shape == (3, 24, 160)
    assert stacked.nbytes == sum(expert.nbytes for expert in experts)
    whole = stacked.dequantise(torch.float32)
    for e, expert in enumerate(experts):
        assert stacked.expert(e).shape == (24, 160)
        assert same_bits(stacked.expert(e).dequantise(torch.float32), expert.dequantise(torch.float32))
        assert same_bits(whole[e], expert.dequantise(torch.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_of_a_stack_is_a_view(kind: str) -> None:
    stacked = stack([make(kind, seed) for seed in range(2)])
    for name, part in stacked.expert(1).tensors.items():
        assert part.untyped_storage().data_ptr() == stacked.tensors[name].untyped_storage().data_ptr()


def test_bytes_are_those_of_the_packed_tensors() -> None:
    assert int4(16, 64, 32, symmetric=True).nbytes == 16 * 32 + 16 * 2 * 2
    assert int4(16, 64, 32, symmetric=False).nbytes == 16 * 32 + 16 * 2 * 2 + 16 * 2
    assert mxfp4(16, 64).nbytes == 16 * 32 + 16 * 2
    assert Fp8BlockWeight(*quantise_fp8(random(130, 64))).nbytes == 130 * 64 + 2 * 4
