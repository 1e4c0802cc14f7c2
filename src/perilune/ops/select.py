"""Which backend serves which op, decided once at start-up, with the reason why others were refused.

The reference is always there and always last. It also keeps everything in float32: its results are exact in the
sense of `ops/rows.py`, bit for bit the same however requests are batched, and that is what float32 is asked for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from perilune.errors import UnsupportedError
from perilune.ops.kda import cpu as kda
from perilune.ops.linear import cpu as linear
from perilune.ops.linear.formats import Weight
from perilune.ops.mla import cpu as mla
from perilune.ops.moe import cpu as moe
from perilune.ops.moe import cpu_router as router
from perilune.ops.native import BF16, Native, refuses_weight
from perilune.ops.norm import cpu as norm
from perilune.ops.selfcheck import disagreement
from perilune.ops.table import REFERENCE, Ops

if TYPE_CHECKING:
    from perilune.ops.gpu.launch import Gpu

log = logging.getLogger(__name__)

OPS = {
    "linear": "dense, int4, MXFP4 and FP8-block matrix products",
    "linears": "several products of one input",
    "rms_norm": "RMSNorm",
    "add_norm": "the sum of a layer's input and output, and its RMSNorm",
    "swiglu": "dense feed-forward and shared experts",
    "route": "router: scores, groups, top-k",
    "experts": "routed experts",
    "kda_prefill": "Kimi Delta Attention, chunked",
    "kda_decode": "Kimi Delta Attention, one token per sequence",
    "mla_store": "normed latents and rotated keys into pages",
    "mla_prefill": "multi-head latent attention, expanded",
    "mla_decode": "multi-head latent attention, absorbed, over pages",
    "sample": "penalties, truncation, draws",
}
CPU_DEVICE = torch.device("cpu")
CPU: dict[str, Callable[..., Any]] = {
    "linear": linear.linear,
    "linears": linear.linears,
    "rms_norm": norm.rms_norm,
    "add_norm": norm.add_norm,
    "swiglu": moe.swiglu,
    "route": router.route,
    "experts": moe.experts,
    "kda_prefill": kda.prefill,
    "kda_decode": kda.decode,
    "mla_store": mla.store,
    "mla_prefill": mla.prefill,
    "mla_decode": mla.decode_rows,
}


@dataclass(frozen=True)
class Needs:
    """What a model asks of its kernels. `weights`: its matrices; `kda_dim`: K of its KDA heads, if it has any;
    `device`: where its tensors are."""

    dtype: torch.dtype = BF16
    weights: Sequence[Weight] = ()
    kda_dim: int | None = None
    device: torch.device = CPU_DEVICE


@dataclass(frozen=True)
class Choice:
    """`backend` serves `op`; `refused` holds (backend, reason) for each faster one that does not."""

    op: str
    what: str
    backend: str
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Selection:
    """The table of functions, and how each came to be in it; `gpu` is what Triton's are launched on, `native` what
    records decode steps: set where C++ kernels serve all of their ops."""

    ops: Ops
    choices: tuple[Choice, ...]
    gpu: Gpu | None = None
    native: Native | None = None

    @property
    def because(self) -> str:
        """One line for the list printed at start-up."""
        reasons = dict.fromkeys(reason for c in self.choices for backend, reason in c.refused[-1:])
        served = [c.op for c in self.choices if c.backend != "reference"]
        if not served:
            return f"kernels reference: {'; '.join(reasons)}"
        backend = next(c.backend for c in self.choices if c.op == served[0])
        rest = [c.op for c in self.choices if c.backend == "reference"]
        return f"kernels {backend} for {', '.join(served)}" + (f"; reference for {', '.join(rest)}" if rest else "")


def choose(needs: Needs, kernels: str = "auto") -> Selection:
    """Pick a backend for every op.

    `kernels` is "auto", "reference" to use no other, or "triton": its kernels wherever they are, which on a CPU means
    in Triton's interpreter. Where Triton serves, it serves every op.
    Raises UnsupportedError, naming the op, if it cannot.
    """
    if kernels == "triton" or needs.device.type != "cpu":
        return _choose_triton(needs, kernels)
    native: Native | str = "kernels=reference was asked for"
    if kernels != "reference":
        native = trusted() if needs.dtype == BF16 else Native.load()
    if isinstance(native, str) and kernels != "reference" and needs.dtype == BF16:
        log.warning("Every op runs on its slow reference: %s.", native)
    choices: list[Choice] = []
    chosen: dict[str, Any] = {}
    for op, what in OPS.items():
        reason = _supports(op, needs, native)
        refused = [("triton", "tensors are on the CPU")]
        if reason is None and isinstance(native, Native):
            chosen[op] = partial(CPU[op], native)
            choices.append(Choice(op, what, f"cpu ({native.name})", tuple(refused)))
        else:
            refused.append(("cpu", str(reason)))
            choices.append(Choice(op, what, "reference", tuple(refused)))
    # those that read matrices are refused together: all or none of them find strips
    if isinstance(native, Native) and "linear" in chosen:
        chosen["prepare"] = partial(linear.prepare, native)
    whole = native if isinstance(native, Native) and chosen.keys() >= CPU.keys() else None
    return Selection(dataclasses.replace(REFERENCE, **chosen), tuple(choices), native=whole)


def _choose_triton(needs: Needs, kernels: str) -> Selection:
    """Triton for every op, or the reference if that was asked for. Imported here: a CPU needs no compiler for GPUs."""
    if kernels == "reference":
        why = (("triton", "kernels=reference was asked for"),)
        return Selection(REFERENCE, tuple(Choice(op, what, "reference", why) for op, what in OPS.items()))
    from perilune.ops.gpu.table import bound, open_gpu, refuses

    gpu = open_gpu(needs.device)
    if isinstance(gpu, str):
        raise UnsupportedError("Triton's kernels cannot run.", f"{gpu[0].upper()}{gpu[1:]}.", "Use --kernels auto.")
    for op, what in OPS.items():
        reason = refuses(op, needs.weights, needs.kda_dim)
        if needs.dtype != BF16:
            reason = f"{str(needs.dtype).removeprefix('torch.')} activations"
        if reason is not None:
            raise UnsupportedError(
                f"No GPU kernel serves {op} ({what}) of this model: {reason}.",
                "It would have to be computed elsewhere, which would be slow and is never done unasked.",
                "Use --dtype bfloat16 and a format the kernels read, --device cpu, or --kernels reference.",
            )
    choices = tuple(Choice(op, what, f"triton ({gpu.arch.name})", ()) for op, what in OPS.items())
    return Selection(dataclasses.replace(REFERENCE, **bound(gpu)), choices, gpu)


def trusted() -> Native | str:
    """The fastest variant this processor runs and that agrees with the reference here; a string says why none does."""
    native = Native.load()
    if isinstance(native, str):
        return native
    refused = []
    for name in native.module.names():
        native = Native.load(name)
        reason = native if isinstance(native, str) else disagreement(native)
        if reason is None:
            return native
        log.warning("The %s kernels are not used: %s.", name, reason)
        refused.append(f"{name}: {reason}")
    return "; ".join(refused)


def _supports(op: str, needs: Needs, native: Native | str) -> str | None:
    """None if the C++ kernels can serve `op` of such a model here, else the reason."""
    if isinstance(native, str):
        return native
    if op not in CPU:
        return "no kernel yet"
    if needs.dtype != BF16:
        return f"{str(needs.dtype).removeprefix('torch.')} stays on the reference, which is exact"
    if op in ("kda_prefill", "kda_decode") and needs.kda_dim is not None:
        return kda.refuses_dim(needs.kda_dim)
    if op in ("linear", "linears", "swiglu", "experts", "mla_prefill", "mla_decode"):
        return next((reason for w in needs.weights if (reason := refuses_weight(w))), None)
    return None
