"""The Triton kernels as ops of a model: imported by `select` only where there are tensors on a GPU to serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton

from perilune.ops.gpu.arch import ARCHES, present
from perilune.ops.gpu.launch import Gpu
from perilune.ops.kda import triton as kda
from perilune.ops.linear import triton as linear
from perilune.ops.linear.formats import Weight
from perilune.ops.mla import triton as mla
from perilune.ops.moe import triton as moe
from perilune.ops.norm import triton as norm
from perilune.ops.sample import triton as sample

OPS: dict[str, Callable[..., Any]] = {
    "linear": linear.linear,
    "linears": linear.linears,
    "rms_norm": norm.rms_norm,
    "add_norm": norm.add_norm,
    "swiglu": moe.swiglu,
    "route": moe.route,
    "experts": moe.experts,
    "kda_prefill": kda.prefill,
    "kda_decode": kda.decode,
    "mla_store": mla.store,
    "mla_prefill": mla.prefill,
    "mla_decode": mla.decode_rows,
}
READ_WEIGHTS = ("linear", "linears", "swiglu", "experts", "mla_prefill", "mla_decode")


def open_gpu(device: torch.device) -> Gpu | str:
    """What launches on `device`; a string says why nothing can. On a CPU only Triton's interpreter can."""
    if device.type == "cuda":
        arch = present(device)
        return arch if isinstance(arch, str) else Gpu(arch)
    if triton.knobs.runtime.interpret:
        return Gpu(ARCHES["gfx1151"])  # its tiles are among the smallest
    return "tensors are on the CPU, and TRITON_INTERPRET is not set"


def bound(gpu: Gpu) -> dict[str, Any]:
    """Every op as the table has it, launching on `gpu`."""
    return {**{name: partial(function, gpu) for name, function in OPS.items()}, "sample": sample.sampling(gpu)}


def refuses(op: str, weights: Sequence[Weight], kda_dim: int | None) -> str | None:
    """None if the kernels can serve `op` of such a model, else the reason."""
    if op in ("kda_prefill", "kda_decode") and kda_dim is not None:
        return kda.refuses(kda_dim)
    if op in READ_WEIGHTS:
        return next((reason for w in weights if (reason := linear.refuses(w))), None)
    return None
