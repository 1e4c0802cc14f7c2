"""y = x W^T on a GPU, for every format: a tile of the weight is unpacked in registers, right before its product.

The weight is the left factor, y^T = W x^T: its rows fill the matrix instructions even when there is one token, and
its tile never needs to leave the registers it was unpacked in.
"""

from __future__ import annotations

import triton
import triton.language as tl

from perilune.ops.gpu.language import dot, narrow, rounded, store, wide


@triton.jit
def spread(x, ROWS: tl.constexpr, GROUPS: tl.constexpr, TIMES: tl.constexpr):
    """[ROWS, GROUPS] -> [ROWS, GROUPS * TIMES], each value TIMES times."""
    return tl.reshape(tl.broadcast_to(x[:, :, None], (ROWS, GROUPS, TIMES)), (ROWS, GROUPS * TIMES))


@triton.jit
def e2m1(code):
    """A 4-bit float's value, fp32: exponent in bits 1 and 2, mantissa in bit 0, sign in bit 3."""
    exponent, mantissa = (code >> 1) & 3, code & 1
    normal = ((exponent + 126) << 23) | (mantissa << 22)
    bits = tl.where(exponent == 0, mantissa * (126 << 23), normal) | ((code & 8) << 28)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def e8m0(byte):
    """2^(byte - 127) in fp32, 255 is NaN: the byte is fp32's exponent field, save for 0."""
    bits = tl.where(byte == 0, 0x00400000, byte << 23)
    return tl.where(byte == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def e4m3(byte):
    """An 8-bit float's value, fp32: its fields moved into fp32's, the exponent's bias (127 - 7) made up for.

    Written out since not every architecture converts the type; 0x7f is its only NaN.
    """
    bits = ((byte & 0x80) << 24) | ((byte & 0x7F) << 20)
    value = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    return tl.where((byte & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def of_expert(data, scale, zero, expert, n, k, groups, FORM: tl.constexpr):
    """Where matrix `expert` of a stack [E, n, k] begins: (data, scale, zero)."""
    expert = expert.to(tl.int64)
    if FORM == "int4" or FORM == "int4z":
        data += expert * n * ((k + 7) // 8)
    elif FORM == "mxfp4":
        data += expert * n * (k // 2)
    else:
        data += expert * n * k
    if FORM == "fp8":
        scale += expert * ((n + 127) // 128) * groups
    else:
        scale += expert * n * groups
    return data, scale, zero + expert * n * groups


@triton.jit
def weight_tile(
    data, scale, zero, row, end, first, k, groups,
    FORM: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """bf16 [BN, BK]: outputs row .. row + BN at inputs first .. first + BK of a matrix [n, k], as `dequantise` rounds.

    `groups` scales per row (int4, int8, mxfp4) or per 128 rows (fp8); GROUP inputs share one. Zero from output `end`
    and input k on. Of an fp32 matrix (FORM "fp32") the values themselves. Only bases are 64 bits wide: offsets within
    a tile are 32, which halves the registers that addresses take.
    """
    begin = tl.zeros((), tl.int64) + row
    out = tl.arange(0, BN)
    inside = (row + out < end)[:, None]
    at = tl.arange(0, BK)
    known_inputs = inside & (first + at < k)[None, :]
    if FORM == "bf16" or FORM == "fp32":
        return tl.load(data + begin * k + first + (out[:, None] * k + at[None, :]), mask=known_inputs, other=0.0)
    else:
        SHARED: tl.constexpr = GROUP if GROUP < BK else BK  # inputs of this tile that share a scale
        COUNT: tl.constexpr = BK // SHARED
        group = tl.arange(0, COUNT)
        known = inside & (first // GROUP + group < groups)[None, :]
        scale_at = begin * groups + first // GROUP + (out[:, None] * groups + group[None, :])
        if FORM == "fp8":
            codes = tl.load(data + begin * k + first + (out[:, None] * k + at[None, :]), mask=known_inputs, other=0)
            values = e4m3(codes.to(tl.int32))
            band = (row + out) // 128
            steps = tl.load(scale + first // GROUP + (band[:, None] * groups + group[None, :]), mask=known, other=0.0)
        elif FORM == "int8":
            codes = tl.load(data + begin * k + first + (out[:, None] * k + at[None, :]), mask=known_inputs, other=0)
            values = codes.to(tl.float32)
            steps = wide(tl.load(scale + scale_at, mask=known, other=0.0))
        elif FORM == "mxfp4":
            half = k // 2
            byte = tl.arange(0, BK // 2)
            stored = inside & (first // 2 + byte < half)[None, :]
            pairs = tl.load(
                data + begin * half + first // 2 + (out[:, None] * half + byte[None, :]), mask=stored, other=0
            )
            codes = (pairs.to(tl.int32)[:, :, None] >> (4 * tl.arange(0, 2))[None, None, :]) & 15
            values = e2m1(tl.reshape(codes, (BN, BK)))
            steps = e8m0(tl.load(scale + scale_at, mask=known, other=127).to(tl.int32))
        else:  # int4, with a zero per group if FORM ends so
            width = (k + 7) // 8
            word = tl.arange(0, BK // 8)
            stored = inside & (first // 8 + word < width)[None, :]
            words = tl.load(
                data + begin * width + first // 8 + (out[:, None] * width + word[None, :]), mask=stored, other=0
            )
            codes = (words[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]) & 15
            values = (tl.reshape(codes, (BN, BK)) - 8).to(tl.float32)
            steps = wide(tl.load(scale + scale_at, mask=known, other=0.0))
            if FORM == "int4z":
                zeros = tl.load(zero + scale_at, mask=known, other=0)
                values -= spread(zeros.to(tl.float32), BN, COUNT, SHARED)
        return narrow(values * spread(steps, BN, COUNT, SHARED))


@triton.jit
def weight_dot(tile, x, acc, FORM: tl.constexpr):
    """acc + tile x: tile [BN, BK], x [BK, BM] bf16. An fp32 tile enters as three bf16 parts: every bit of it counts."""
    if FORM == "fp32":
        high = narrow(tile)
        rest = tile - wide(high)
        middle = narrow(rest)
        acc = dot(narrow(rest - wide(middle)), x, acc)
        acc = dot(middle, x, acc)
        return dot(high, x, acc)
    else:
        return dot(tile, x, acc)


@triton.jit(do_not_specialize=["m", "out_row", "out_part", "steps"])
def linear(
    x, data, scale, zero, out, m, n, k, groups, x_row, out_row, out_part, steps,
    FORM: tl.constexpr, GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x [m, k] bf16, W [n, k] -> out [m, n], rows `out_row` apart.

    Program (i, j, p) makes BN columns of BM rows over `steps` tiles of inputs: part p of several, `out_part` apart.
    """
    row, token = tl.program_id(0) * BN, tl.program_id(1) * BM
    columns, tokens = tl.arange(0, BN), tl.arange(0, BM)
    present = (token + tokens < m)[None, :]
    first = tl.program_id(2) * steps * BK
    acc = tl.zeros((BN, BM), tl.float32)
    x += token.to(tl.int64) * x_row
    for step in range(steps):
        at = first + step * BK
        tile = weight_tile(data, scale, zero, row, n, at, k, groups, FORM, GROUP, BN, BK)
        inputs = tl.arange(0, BK)
        inside = (at + inputs < k)[:, None] & present
        values = tl.load(x + at + (tokens[None, :] * x_row + inputs[:, None]), mask=inside, other=0.0)
        acc = weight_dot(tile, values, acc, FORM)
    out += tl.program_id(2).to(tl.int64) * out_part + token.to(tl.int64) * out_row + row
    store(out + (tokens[None, :] * out_row + columns[:, None]), acc, (row + columns < n)[:, None] & present)


@triton.jit(do_not_specialize=["m", "parts", "out_row"])
def reduce(partial, out, m, n, parts, out_row, BLOCK: tl.constexpr):
    """partial [parts, m, n] fp32 -> out [m, n]: the sum of the parts, first to last."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(partial + (part * m + row) * n + at, mask=at < n, other=0.0)
    store(out + row * out_row + at, total, at < n)


@triton.jit
def swish_product(gate, up):
    """SiLU(gate) * up, rounded where the reference's bf16 tensors are."""
    gate = rounded(gate)
    return rounded(gate * tl.sigmoid(gate)) * rounded(up)
