"""Weights as they lie in memory: dense, or packed and unpacked only where they are used.

Each class holds one matrix [N, K] (N outputs, K inputs) or, with a leading dimension, a stack of E of them [E, N, K].
`dequantise` is the definition every kernel is compared with. Where the format's own tool computes in bfloat16 (int4,
mxfp4), so does `dequantise`, before the cast to the asked dtype: the result is what the tool would have stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from perilune.ops.linear.strips import MULTIPLE, interleave, separate

INT4_PER_WORD = 8
MXFP4_BLOCK = 32
FP8_BLOCK = 128

# e2m1: bit 3 is the sign.
_MXFP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, eq=False)
class _Stored:
    """What the formats share: their tensors, their size, stacking.

    `in_strips` says which tensors change when the weight is laid out in strips, and how: see `strips.interleave`.
    """

    in_strips: ClassVar[dict[str, tuple[int, int] | None]] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the weight, by field name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same weight with every tensor changed: moved to a device, sliced along the stack."""
        return self.changed({name: change(tensor) for name, tensor in self.tensors.items()})

    def changed(self, tensors: dict[str, Tensor]) -> Self:
        """The same weight with these of its tensors in place of its own."""
        return dataclasses.replace(self, **tensors)

    def expert(self, e: int) -> Self:
        """Matrix `e` of a stack, as a view."""
        return self.map(lambda tensor: tensor[e])


@dataclass(frozen=True, eq=False)
class DenseWeight(_Stored):
    """Plain values: `data` [N, K], any float dtype."""

    data: Tensor
    in_strips: ClassVar = {"data": (1, 1)}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[N, K] in `dtype`; `data` itself if it already is."""
        return self.data.to(dtype)


@dataclass(frozen=True, eq=False)
class Int4Weight(_Stored):
    """compressed-tensors `pack-quantized` with 4 bits: weight = (q - zero) * scale, q and zero in -8..7.

    `packed` int32 [N, ceil(K/8)]: bits 4i..4i+3 of word w hold q + 8 of input 8w + i. `scale` [N, ceil(K/group)]; the
    last group may be short. `zero` int8 [N, ceil(K/group)], one per group, or None where zero is 0; the files hold it
    packed along N. `columns` is K where K is not a multiple of 8.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    group: int
    columns: int | None = None
    in_strips: ClassVar = {"packed": (1, 1), "scale": None, "zero": None}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        *lead, words = self.packed.shape
        return (*lead, words * INT4_PER_WORD if self.columns is None else self.columns)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: computed in the scale's dtype (bfloat16 in every known checkpoint), then cast."""
        columns = self.shape[-1]
        q = unpack_int4(self.packed, columns).to(self.scale.dtype)
        if self.zero is not None:
            q -= _spread(self.zero.to(q.dtype), self.group, columns)
        return (q * _spread(self.scale, self.group, columns)).to(dtype)


@dataclass(frozen=True, eq=False)
class Mxfp4Weight(_Stored):
    """OCP microscaling fp4 as Quark and compressed-tensors store it: weight = e2m1 value * 2^(scale - 127).

    `packed` uint8 [N, K/2]: the low nibble holds input 2i, the high one 2i + 1. `scale` uint8 [N, ceil(K/32)], e8m0;
    255 is NaN.
    """

    packed: Tensor
    scale: Tensor
    in_strips: ClassVar = {"packed": (1, 1), "scale": None}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        *lead, half = self.packed.shape
        return (*lead, half * 2)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: the product is exact in bfloat16 (below its overflow), so only the last cast can round."""
        values = torch.tensor(_MXFP4_VALUES + tuple(-v for v in _MXFP4_VALUES), device=self.packed.device)
        codes = torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(-2)
        scale = _spread(e8m0_to_float(self.scale), MXFP4_BLOCK, codes.shape[-1])
        return (values[codes.int()] * scale).to(torch.bfloat16).to(dtype)


@dataclass(frozen=True, eq=False)
class Fp8BlockWeight(_Stored):
    """DeepSeek's fp8: weight = data * scale_inv, one scale per 128 x 128 block (despite its name, a factor).

    `data` float8_e4m3fn [N, K]; `scale_inv` fp32 [ceil(N/128), ceil(K/128)], blocks at the edges may be short.
    """

    data: Tensor
    scale_inv: Tensor
    in_strips: ClassVar = {"data": (2, 2)}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: the fp32 product, rounded once to `dtype`.

        Unlike the 4-bit formats there is no stop at bfloat16: the scales are fp32, and fp8 kernels apply them in fp32
        accumulators. Asking for bfloat16 gives what DeepSeek's own conversion script writes.
        """
        rows, columns = self.data.shape[-2:]
        scale = _spread(self.scale_inv, FP8_BLOCK, columns)
        scale = scale.repeat_interleave(FP8_BLOCK, -2)[..., :rows, :]
        return (self.data.float() * scale).to(dtype)


@dataclass(frozen=True, eq=False)
class Int8Weight(_Stored):
    """What `quantise_int8` makes of dense values: weight = data * scale.

    `data` int8 [N, K] in -127..127; `scale` bfloat16 [N, ceil(K/group)]; the last group may be short.
    """

    data: Tensor
    scale: Tensor
    group: int
    in_strips: ClassVar = {"data": (4, 2), "scale": None}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: the fp32 product, rounded once to `dtype`, as kernels apply the scale in fp32."""
        return (self.data.float() * _spread(self.scale.float(), self.group, self.shape[-1])).to(dtype)


StoredWeight = DenseWeight | Int4Weight | Mxfp4Weight | Fp8BlockWeight | Int8Weight


@dataclass(frozen=True, eq=False)
class TiledWeight(_Stored):
    """A weight whose tensors lie in strips (`strips.py`): only C++ kernels read them as they are.

    `plain` names its tensors and shapes; its methods would read their bytes in the wrong order. `handle` is the
    kernels' own view of it, made once, if they made one.
    """

    plain: StoredWeight
    handle: object = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.plain.tensors

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return dataclasses.replace(self, plain=self.plain.map(change), handle=None)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.plain.shape

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: a copy is put back into order first."""
        tensors, swaps = self.tensors, self.plain.in_strips
        ordered = {name: separate(tensors[name], swap) for name, swap in swaps.items() if name in tensors}
        return self.plain.changed(ordered).dequantise(dtype)


Weight = StoredWeight | TiledWeight
_W = TypeVar("_W", bound=_Stored)


def stack(weights: Sequence[_W]) -> _W:
    """E weights of one format and shape -> one with a leading dimension E. Copies."""
    first = weights[0]
    parts = {name: torch.stack([w.tensors[name] for w in weights]) for name in first.tensors}
    return dataclasses.replace(first, **parts)


def tile(weight: Weight, rearrange: Callable[[Tensor, tuple[int, int] | None], None] = interleave) -> Weight:
    """The weight in strips, rearranged in place: nobody else may read its tensors any more.

    Returned as it is: one that is in strips, whose sides are not multiples of 32, or whose values no kernel reads.
    """
    if isinstance(weight, TiledWeight) or any(side % MULTIPLE for side in weight.shape[-2:]):
        return weight
    if isinstance(weight, DenseWeight) and weight.data.dtype != torch.bfloat16:
        return weight
    for name, swap in weight.in_strips.items():
        if name in weight.tensors:
            rearrange(weight.tensors[name], swap)
    return TiledWeight(weight)


def quantise_int8(values: Tensor, group: int) -> Int8Weight:
    """Dense [..., N, K] -> int8, symmetric: in each `group` inputs of an output the largest value becomes 127."""
    columns = values.shape[-1]
    groups = torch.nn.functional.pad(values.float(), (0, -columns % group)).unflatten(-1, (-1, group))
    scale = (groups.abs().amax(-1) / 127).bfloat16()
    inverse = torch.where(scale == 0, 0.0, 1 / scale.float())
    data = (groups * inverse[..., None]).round().clamp(-127, 127).to(torch.int8)
    return Int8Weight(data.flatten(-2)[..., :columns].contiguous(), scale, group)


def unpack_int4(packed: Tensor, columns: int) -> Tensor:
    """int32 [..., words] -> int8 [..., columns] in -8..7; nibble i of word w is element 8w + i."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed[..., None] >> shifts) & 15
    return (nibbles.to(torch.int8) - 8).flatten(-2)[..., :columns]


def pack_int4(q: Tensor) -> Tensor:
    """Inverse of `unpack_int4`: int8 [..., columns] in -8..7 -> int32 [..., ceil(columns/8)], zero bits at the end."""
    codes = q.to(torch.int64) + 8
    codes = torch.nn.functional.pad(codes, (0, -q.shape[-1] % INT4_PER_WORD))
    codes = codes.reshape(*codes.shape[:-1], -1, INT4_PER_WORD)
    shifts = torch.arange(0, 32, 4, device=q.device)
    words = (codes << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def e8m0_to_float(scale: Tensor) -> Tensor:
    """uint8 -> fp32 2^(byte - 127), exactly: the byte is an fp32 exponent field, save for 0 (2^-127) and 255 (NaN)."""
    power = (scale.int() << 23).view(torch.float32)
    power = torch.where(scale == 0, 2.0**-127, power)
    return torch.where(scale == 255, float("nan"), power)


def _spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """[..., groups] -> [..., columns]: each value `group` times, the last group cut short."""
    return per_group.repeat_interleave(group, -1)[..., :columns]
