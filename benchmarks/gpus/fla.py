"""fla-core's kernels for a KDA layer's step, put together as its own layer does it. Optional: `pip install fla-core`.

It compiles and searches for tiles in its first calls, before the clock is looked at. Its three convolutions are given
q, k and v apart; ours reads them out of one projection.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType

import torch
from torch import Tensor

from perilune.ops.kda.reference import Parameters, Projections


@dataclass(frozen=True)
class Fla:
    """`kda`, `convolution` and `norm` are its modules."""

    version: str
    kda: ModuleType
    convolution: ModuleType
    norm: ModuleType

    @staticmethod
    def open() -> Fla | str:
        """What is installed; a string says why it cannot be used."""
        try:
            found = version("fla-core")
            parts = ("fla.ops.kda", "fla.modules.causal_conv1d", "fla.modules.norm.fused_norm_gate")
            return Fla(found, *(importlib.import_module(part) for part in parts))
        except ImportError as error:  # not installed, or something of its own is missing
            return f"fla-core is not here: {error}"

    def prefill(self, x: Projections, w: Parameters) -> Callable[[], Tensor]:
        """One prompt from an empty state: [T, H, V]. It returns the states of all chunks, as we export some."""
        tokens, heads, dim = x.f.shape
        raws, weights = self._split(x, w)
        f, b, gates = x.f[None], x.b[None], x.out_gate[None]
        state = torch.zeros(1, heads, dim, dim, device=x.f.device)

        @torch.inference_mode()
        def call() -> Tensor:
            q, k, v = (
                self.convolution.causal_conv1d(raw[None], weight, activation="silu", output_final_state=True)[0]
                for raw, weight in zip(raws, weights, strict=True)
            )
            q, k, v = (part.view(1, tokens, heads, dim) for part in (q, k, v))
            o = self.kda.chunk_kda(
                q, k, v, f, b, initial_state=state, output_final_state=True, return_intermediate_states=True,
                **self._settings(w),
            )[0]  # fmt: skip
            out: Tensor = self.norm.rms_norm_gated(o, gates, w.norm, None, activation="sigmoid", eps=w.eps)
            return out[0]

        return call

    def decode(self, x: Projections, w: Parameters, state: Tensor) -> Callable[[], Tensor]:
        """One token of each of n sequences, from states [n, H, K, V]: [n, H, V]."""
        count, heads, dim = x.f.shape
        raws, weights = self._split(x, w)
        windows = [torch.zeros(count, heads * dim, 4, dtype=raw.dtype, device=raw.device) for raw in raws]
        f, b, gates = x.f[:, None], x.b[:, None], x.out_gate[:, None]

        @torch.inference_mode()
        def call() -> Tensor:
            q, k, v = (
                self.convolution.causal_conv1d_update(raw[:, None], window, weight=weight, activation="silu")[0]
                for raw, window, weight in zip(raws, windows, weights, strict=True)
            )
            q, k, v = (part.view(count, 1, heads, dim) for part in (q, k, v))
            o = self.kda.fused_recurrent_kda(
                q, k, v, f, b, initial_state=state, output_final_state=True, **self._settings(w)
            )[0]
            out: Tensor = self.norm.rms_norm_gated(o, gates, w.norm, None, activation="sigmoid", eps=w.eps)
            return out[:, 0]

        return call

    def _settings(self, w: Parameters) -> dict[str, object]:
        """The gate, the norms of q and k and the sigmoid of beta are its kernels' part, as they are ours'."""
        fused = ("use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel")
        return {"A_log": w.a_log, "dt_bias": w.dt_bias.flatten(), **dict.fromkeys(fused, True)}

    def _split(self, x: Projections, w: Parameters) -> tuple[list[Tensor], list[Tensor]]:
        raws = [part.contiguous() for part in x.raw.chunk(3, dim=-1)]
        return raws, [part.contiguous() for part in w.conv.chunk(3)]
