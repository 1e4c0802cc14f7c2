"""What the tests of the C++ kernels share: every variant this processor runs, and random weights of each format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perilune.ops.linear.formats import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Mxfp4Weight,
    Weight,
    pack_int4,
    quantise_int8,
)
from perilune.ops.native import Native


def variants() -> list[Native]:
    """One per instruction set this processor has; skips the module where the extension was not built."""
    first = Native.load()
    if isinstance(first, str):
        pytest.skip(first, allow_module_level=True)
    return [native for name in first.module.names() if isinstance(native := Native.load(name), Native)]


def difference(ours: Tensor, expected: Tensor) -> float:
    """Relative error of the whole tensor; NaN if anything is."""
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


def random(*shape: int, seed: int) -> Tensor:
    """Normal bf16 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


FORMATS = ("bf16", "int4-32", "int4-128", "int4-32-zero", "mxfp4", "fp8", "int8-32", "int8-128")


def weight(name: str, *shape: int, seed: int) -> Weight:
    """A random weight [N, K] or [E, N, K] of a named format."""
    g = torch.Generator().manual_seed(seed)
    *lead, k = shape
    if name == "bf16":
        return DenseWeight(random(*shape, seed=seed))
    if name == "mxfp4":
        codes = torch.randint(0, 256, (*lead, k // 2), dtype=torch.uint8, generator=g)
        return Mxfp4Weight(codes, torch.randint(120, 130, (*lead, -(-k // 32)), dtype=torch.uint8, generator=g))
    if name == "fp8":
        data = torch.randn(*shape, generator=g).to(torch.float8_e4m3fn)
        blocks = (*lead[:-1], -(-lead[-1] // 128), -(-k // 128))
        return Fp8BlockWeight(data, torch.rand(*blocks, generator=g) + 0.1)
    group = 128 if "128" in name else 32
    if name.startswith("int8"):
        return quantise_int8(torch.randn(*shape, generator=g), group)
    groups = (*lead, -(-k // group))
    q = torch.randint(-8, 8, shape, dtype=torch.int8, generator=g)
    zero = torch.randint(-8, 8, groups, dtype=torch.int8, generator=g) if "zero" in name else None
    scale = (torch.rand(*groups, generator=g) / 8 + 0.01).bfloat16()
    return Int4Weight(pack_int4(q), scale, zero, group, k if k % 8 else None)
