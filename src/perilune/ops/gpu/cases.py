"""Every kernel, weight format and tile, at the sizes of known models: what the ahead-of-time report compiles.

Ops are called as a model calls them, with tensors on torch's meta device and a `Recorder` for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.launch import Launch, Recorder
from perilune.ops.gpu.trail import Trail
from perilune.ops.kda import triton as kda
from perilune.ops.kda.reference import Parameters, Projections
from perilune.ops.linear import triton as linear
from perilune.ops.linear.formats import DenseWeight, Fp8BlockWeight, Int4Weight, Int8Weight, Mxfp4Weight, Weight
from perilune.ops.mla import triton as mla
from perilune.ops.mla.reference import PAGE, Shape
from perilune.ops.moe import triton as moe
from perilune.ops.norm import triton as norm
from perilune.ops.sample import triton as sample

BF16, FP32 = torch.bfloat16, torch.float32
FORMATS = ("bf16", "int4-32", "int4-128", "int4-32-zero", "mxfp4", "fp8", "int8-32")
QUICK_FORMATS = ("int4-32",)
FEW, MANY = 4, 512
HIDDEN, WIDTH, EXPERTS, TOP_K, VOCAB = 2304, 1024, 256, 8, 163840  # Kimi-Linear
HEADS, DIM = 32, 128
# Kimi-Linear and Kimi-K2; GLM-4.7-Flash, whose heads are wider and no power of two
MLA_SHAPES: tuple[Shape, ...] = (
    {"nope": 128, "v_dim": 128, "rank": 512, "scale": 192**-0.5},
    {"nope": 192, "v_dim": 256, "rank": 512, "scale": 256**-0.5},
)
ROPE = 64


def launches(arch: Arch, quick: bool = False) -> list[Launch]:
    """All of them; `quick`: one format, and one model's attention, so that CI can afford it."""
    gpu = Recorder(arch)
    for form in QUICK_FORMATS if quick else FORMATS:
        _products(gpu, form)
    _norms(gpu)
    _router(gpu)
    _kda(gpu)
    for shape in MLA_SHAPES[:1] if quick else MLA_SHAPES:
        for form in ("bf16",) if quick else FORMATS:
            _mla(gpu, shape, form)
    _sample(gpu)
    Trail(gpu, meta(1, dtype=torch.int64)).leave(0)
    return gpu.launches


def meta(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def weight(form: str, *shape: int) -> Weight:
    """A weight [N, K] or [E, N, K] of a named format, without memory."""
    *lead, k = shape
    if form == "bf16":
        return DenseWeight(meta(*shape))
    if form == "mxfp4":
        return Mxfp4Weight(meta(*lead, k // 2, dtype=torch.uint8), meta(*lead, -(-k // 32), dtype=torch.uint8))
    if form == "fp8":
        blocks = meta(*lead[:-1], -(-lead[-1] // 128), -(-k // 128), dtype=FP32)
        return Fp8BlockWeight(meta(*shape, dtype=torch.float8_e4m3fn), blocks)
    group = int(form.split("-")[1])
    scale = meta(*lead, -(-k // group))
    if form.startswith("int8"):
        return Int8Weight(meta(*shape, dtype=torch.int8), scale, group)
    zero = meta(*scale.shape, dtype=torch.int8) if form.endswith("zero") else None
    return Int4Weight(meta(*lead, -(-k // 8), dtype=torch.int32), scale, zero, group)


def _products(gpu: Recorder, form: str) -> None:
    into, out = weight(form, EXPERTS, WIDTH, HIDDEN), weight(form, EXPERTS, HIDDEN, WIDTH)
    for tokens in (FEW, MANY, 32 * MANY):
        x, ids, shares = meta(tokens, HIDDEN), meta(tokens, TOP_K, dtype=torch.int64), meta(tokens, TOP_K, dtype=FP32)
        linear.linear(gpu, x, weight(form, HEADS * DIM, HIDDEN))
        moe.swiglu(gpu, x, into.expert(0), into.expert(0), out.expert(0))
        moe.experts(gpu, x, ids, shares, into, into, out)


def _norms(gpu: Recorder) -> None:
    for dim in (512, HIDDEN, 7168):
        norm.rms_norm(gpu, meta(FEW, dim), meta(dim), 1e-5)


def _router(gpu: Recorder) -> None:
    for dtype in (BF16, FP32):
        for tokens in (FEW, MANY):
            moe.route(gpu, meta(tokens, HIDDEN), meta(EXPERTS, HIDDEN, dtype=dtype), meta(EXPERTS, dtype=FP32), top_k=8)
    x, bias = meta(FEW, 7168), meta(256, dtype=FP32)
    moe.route(gpu, x, meta(256, 7168), bias, top_k=TOP_K, groups=8, top_groups=4)  # DeepSeek-V3
    moe.route(gpu, x, meta(384, 7168), meta(384, dtype=FP32), top_k=TOP_K)  # Kimi-K2


def _kda(gpu: Recorder) -> None:
    tokens = MANY
    x = Projections(
        meta(tokens, 3 * HEADS * DIM), meta(tokens, HEADS, DIM), meta(tokens, HEADS), meta(tokens, HEADS, DIM)
    )
    w = Parameters(meta(3 * HEADS * DIM, 4), meta(HEADS, dtype=FP32), meta(HEADS, DIM, dtype=FP32), meta(DIM), 1e-5)
    state, conv = meta(8, HEADS, DIM, DIM, dtype=FP32), meta(8, 3, HEADS, DIM, 3)
    kda.prefill(gpu, x, slice(0, tokens), 0, w, state, conv, ((64, 1),))
    rows = meta(FEW, dtype=torch.int64)
    kda.decode(gpu, x, rows, rows, w, state, conv)


def _mla(gpu: Recorder, shape: Shape, form: str) -> None:
    kv_b = weight(form, HEADS * (shape["nope"] + shape["v_dim"]), shape["rank"])
    pages, q = meta(64, PAGE, shape["rank"] + ROPE), meta(MANY, HEADS, shape["nope"] + ROPE)
    table = meta(4, 16, dtype=torch.int64)
    kv, norm, at = meta(MANY, shape["rank"] + ROPE), meta(shape["rank"]), meta(MANY, dtype=torch.int64)
    for turn in (None, (meta(MANY, ROPE // 2, dtype=FP32), meta(MANY, ROPE // 2, dtype=FP32))):
        mla.store(gpu, q, kv, norm, 1e-5, turn, pages, at, at)
    mla.prefill(gpu, q, pages, table[0], 0, kv_b, **shape)
    lengths = meta(4, dtype=torch.int64)
    mla.decode_rows(gpu, q[:4], pages, table, lengths, kv_b, **shape)  # type: ignore[arg-type]


def _sample(gpu: Recorder) -> None:
    row, rows, settings = meta(VOCAB, dtype=FP32), meta(FEW, VOCAB, dtype=FP32), meta(FEW, 4, dtype=torch.float64)
    sample.penalise(gpu, row, meta(VOCAB, dtype=torch.bool), row, repetition=1.1, presence=0.0, frequency=0.0)
    sample.truncate(gpu, rows, settings)
    sample.draw(gpu, rows, settings)
