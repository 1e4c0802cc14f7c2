"""The whole decoder: embed, then per layer h += mixer(norm h), h += ffn(norm h), then norm and head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from perilune.models.spec import DenseSpec, KdaSpec, MlaSpec, ModelSpec, MoeSpec, RopeSpec
from perilune.nn.batch import Batch
from perilune.nn.group import ALONE, Group
from perilune.nn.kda import kda_layer
from perilune.nn.mla import mla_layer
from perilune.nn.rope import inverse_frequencies, rotation
from perilune.nn.weights import KdaWeights, MlaWeights, ModelWeights, MoeWeights, SwigluWeights
from perilune.ops.mla.reference import Rotation
from perilune.ops.table import REFERENCE, Ops


class CacheViews(Protocol):
    """One layer's share of the arenas; `layer` is the index in `spec.layers`."""

    def pages(self, layer: int) -> Tensor:
        """[P, 64, R + rope]."""

    def state(self, layer: int) -> Tensor:
        """[S, H, K, V] fp32."""

    def conv(self, layer: int) -> Tensor:
        """[S, 3, H, K, taps-1]."""


@dataclass(frozen=True)
class Decoder:
    """A model ready to run on `ops`. Stateless: everything a sequence leaves behind is in the cache views.

    In a tensor-parallel `group` every rank runs the same steps on its share: `spec` has this rank's heads, `weights`
    what it holds, and the parts that layers compute are summed over the ranks.
    """

    spec: ModelSpec
    weights: ModelWeights
    ops: Ops = REFERENCE
    group: Group = ALONE

    @torch.inference_mode()
    def __call__(self, batch: Batch, cache: CacheViews) -> Tensor:
        """Run one step; returns what the head reads, [n, D] of `batch.logit_rows`."""
        h = self._embed(batch.tokens)
        rotations = self._rotations(batch)
        ops, rms_norm, total = self.ops, self.ops.rms_norm, self.group.sum
        for index, (layer, w) in enumerate(zip(self.spec.layers, self.weights.layers, strict=True)):
            x = rms_norm(h, w.mixer_norm, self.spec.norm_eps)
            if isinstance(layer.mixer, KdaSpec):
                assert isinstance(w.mixer, KdaWeights)
                h = h + total(kda_layer(x, w.mixer, layer.mixer, batch, cache.state(index), cache.conv(index), ops))
            else:
                assert isinstance(w.mixer, MlaWeights)
                turn = rotations[layer.mixer.rope] if layer.mixer.rope else None
                h = h + total(mla_layer(x, w.mixer, layer.mixer, batch, cache.pages(index), turn, ops))
            h = h + total(_ffn(rms_norm(h, w.ffn_norm, self.spec.norm_eps), w.ffn, layer.ffn, ops))
        return rms_norm(h[batch.logit_rows], self.weights.norm, self.spec.norm_eps)

    @torch.inference_mode()
    def head(self, rows: Tensor) -> Tensor:
        """Rows [n, D] of a step to fp32 logits [n, vocab]. Apart: nobody wants those of a whole prompt at once.

        In a group the first rank gets them all, others only their own part.
        """
        return self.group.collect(self.ops.linear(rows, self.weights.lm_head).float())

    def _embed(self, tokens: Tensor) -> Tensor:
        """[T] -> [T, D]. A token of another rank's vocabulary is zero here, so that the sum is exact."""
        table, first = self.weights.embed, self.weights.first
        if len(table) == self.spec.vocab:
            return table.rows(tokens)
        own = tokens - first
        mine = (own >= 0) & (own < len(table))
        return self.group.sum(torch.where(mine[:, None], table.rows(own.where(mine, 0)), 0))

    @cached_property
    def _frequencies(self) -> dict[RopeSpec, Tensor]:
        """Of each distinct RoPE, where the weights are."""
        mixers = [layer.mixer for layer in self.spec.layers]
        ropes = {mixer.rope for mixer in mixers if isinstance(mixer, MlaSpec) and mixer.rope}
        return {rope: inverse_frequencies(rope).to(self.weights.norm.device) for rope in ropes}

    def _rotations(self, batch: Batch) -> dict[RopeSpec, Rotation]:
        """cos and sin per distinct RoPE, computed once a step."""
        return {rope: rotation(rope, steps, batch.positions) for rope, steps in self._frequencies.items()}


def _ffn(x: Tensor, w: SwigluWeights | MoeWeights, spec: DenseSpec | MoeSpec, ops: Ops) -> Tensor:
    """x [T, D] -> [T, D]; expert outputs are summed in fp32 before the shared expert joins."""
    if isinstance(w, SwigluWeights):
        return ops.swiglu(x, w.gate, w.up, w.down)
    assert isinstance(spec, MoeSpec)
    ids, weights = ops.route(
        x,
        w.router,
        w.bias,
        top_k=spec.top_k,
        groups=spec.groups,
        top_groups=spec.top_groups,
        renormalise=spec.renormalise,
        scaling=spec.scaling,
    )
    held = w.experts.gate.shape[0]
    if held < w.router.shape[0]:
        ids = ids - w.first
        ids = ids.where((ids >= 0) & (ids < held), -1)  # another rank's
    out = ops.experts(x, ids, weights, w.experts.gate, w.experts.up, w.experts.down)
    if w.shared is not None:
        out = out + ops.swiglu(x, w.shared.gate, w.shared.up, w.shared.down).float()
    return out.to(x.dtype)
