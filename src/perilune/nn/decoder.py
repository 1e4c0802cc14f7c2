"""The whole decoder: embed, then per layer h += mixer(norm h), h += ffn(norm h), then norm and head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

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


class Entry(NamedTuple):
    """A batch before the layers: its tokens' embeddings [T, D], and of each RoPE cos and sin of its positions."""

    h: Tensor
    rotations: dict[RopeSpec, Rotation]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.h, *(angle for rotation in self.rotations.values() for angle in rotation)]


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

    def __call__(self, batch: Batch, cache: CacheViews) -> Tensor:
        """Run one step; returns what the head reads, [n, D] of `batch.logit_rows`."""
        return self.through(self.enter(batch), batch, cache)

    @torch.inference_mode()
    def enter(self, batch: Batch) -> Entry:
        """What does not depend on the layers."""
        rotations = {rope: rotation(rope, steps, batch.positions) for rope, steps in self._frequencies.items()}
        return Entry(self._embed(batch.tokens), rotations)

    @torch.inference_mode()
    def through(self, entry: Entry, batch: Batch, cache: CacheViews) -> Tensor:
        """The layers and the last norm. `entry.h` may be changed in place."""
        ops, total, eps = self.ops, self.group.sum, self.spec.norm_eps
        h, part = entry.h, None
        for index, (layer, w) in enumerate(zip(self.spec.layers, self.weights.layers, strict=True)):
            if part is None:
                x = ops.rms_norm(h, w.mixer_norm, eps)
            else:
                h, x = ops.add_norm(h, part, w.mixer_norm, eps)
            del part  # a prompt's is large
            if isinstance(layer.mixer, KdaSpec):
                assert isinstance(w.mixer, KdaWeights)
                part = total(kda_layer(x, w.mixer, layer.mixer, batch, cache.state(index), cache.conv(index), ops))
            else:
                assert isinstance(w.mixer, MlaWeights)
                turn = entry.rotations[layer.mixer.rope] if layer.mixer.rope else None
                part = total(mla_layer(x, w.mixer, layer.mixer, batch, cache.pages(index), turn, ops))
            h, x = ops.add_norm(h, part, w.ffn_norm, eps)
            del part
            part = total(_ffn(x, w.ffn, layer.ffn, ops))
        assert part is not None
        if batch.logit_rows is not None:
            h, part = h[batch.logit_rows], part[batch.logit_rows]
        return ops.add_norm(h, part, self.weights.norm, eps)[1]

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


def _ffn(x: Tensor, w: SwigluWeights | MoeWeights, spec: DenseSpec | MoeSpec, ops: Ops) -> Tensor:
    """x [T, D] -> [T, D]."""
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
    shared = None if w.shared is None else (w.shared.gate, w.shared.up, w.shared.down)
    return ops.experts(x, ids, weights, w.experts.gate, w.experts.up, w.experts.down, shared)
