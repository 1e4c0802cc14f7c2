"""The ops a model computes with, as one table of functions: what `select` fills and `nn` calls.

Every entry has the signature and the meaning of its reference; see there for shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from perilune.ops.kda import reference as kda
from perilune.ops.linear import reference as linear
from perilune.ops.linear.formats import Weight
from perilune.ops.mla import reference as mla
from perilune.ops.moe import reference as moe
from perilune.ops.norm import reference as norm
from perilune.ops.sample import reference as sample


@dataclass(frozen=True)
class Ops:
    """One function per op, but a few for `sample`. `prepare` lays a matrix out for them once, in place, before any
    other is called with it."""

    prepare: Callable[[Weight], Weight]
    linear: Callable[[Tensor, Weight], Tensor]
    linears: Callable[[Tensor, Sequence[Sequence[Weight]]], list[Tensor]]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    swiglu: Callable[[Tensor, Weight, Weight, Weight], Tensor]
    route: Callable[..., tuple[Tensor, Tensor]]
    experts: Callable[[Tensor, Tensor, Tensor, Weight, Weight, Weight, moe.Swiglu | None], Tensor]
    kda_prefill: Callable[..., Tensor]
    kda_decode: Callable[[kda.Projections, Tensor, Tensor, kda.Parameters, Tensor, Tensor], Tensor]
    mla_store: Callable[..., Tensor]
    mla_prefill: Callable[..., Tensor]
    mla_decode: Callable[..., Tensor]
    sample: sample.Sampling


REFERENCE = Ops(
    prepare=lambda weight: weight,
    linear=linear.linear,
    linears=linear.linears,
    rms_norm=norm.rms_norm,
    add_norm=norm.add_norm,
    swiglu=moe.swiglu,
    route=moe.route,
    experts=moe.experts,
    kda_prefill=kda.prefill,
    kda_decode=kda.decode,
    mla_store=mla.store,
    mla_prefill=mla.prefill,
    mla_decode=mla.decode_rows,
    sample=sample.SAMPLING,
)
