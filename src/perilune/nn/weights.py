"""The loaded tensors of a model, grouped by layer and named as the formulas name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from perilune.models.embedding import Embedding, HeldEmbedding, StoredEmbedding
from perilune.models.holding import EMBEDDING
from perilune.models.share import WHOLE, Share
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, ModelSpec
from perilune.ops.linear.formats import DenseWeight, Weight

Loaded = Mapping[str, "Tensor | Weight | StoredEmbedding"]
_Group = TypeVar("_Group", "LayerWeights", "KdaWeights", "MlaWeights", "SwigluWeights", "MoeWeights")


@dataclass(frozen=True)
class KdaWeights:
    """`conv` [3 * H * K, taps] holds q, k and v rows in that order; `a_log` [H], `dt_bias` [H, K], `norm` [V]."""

    q: Weight
    k: Weight
    v: Weight
    f_a: Weight
    f_b: Weight
    g_a: Weight
    g_b: Weight
    b: Weight
    o: Weight
    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor
    norm: Tensor


@dataclass(frozen=True)
class MlaWeights:
    """`q` alone, or `q_a`, `q_norm` and `q_b` where the query is low-rank too. `kv_b` [H * (nope + v), R]."""

    q: Weight | None
    q_a: Weight | None
    q_norm: Tensor | None
    q_b: Weight | None
    kv_a: Weight
    kv_norm: Tensor
    kv_b: Weight
    o: Weight


@dataclass(frozen=True)
class SwigluWeights:
    gate: Weight
    up: Weight
    down: Weight


@dataclass(frozen=True)
class MoeWeights:
    """`router` [E, D], `bias` [E] fp32; `experts` are stacked [E, ...], those from `first` on if ranks share them."""

    router: Tensor
    bias: Tensor
    experts: SwigluWeights
    shared: SwigluWeights | None
    first: int = 0


@dataclass(frozen=True)
class LayerWeights:
    mixer_norm: Tensor
    ffn_norm: Tensor
    mixer: KdaWeights | MlaWeights
    ffn: SwigluWeights | MoeWeights


@dataclass(frozen=True)
class ModelWeights:
    """`embed` and `lm_head` have a row per token, those from `first` on if ranks share the vocabulary."""

    embed: Embedding
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    lm_head: Weight
    first: int = 0

    def matrices(self) -> Iterator[Weight]:
        """Every weight that a matrix product reads, stacks of experts included."""
        yield self.lm_head
        for layer in self.layers:
            yield from _matrices(layer)

    def prepared(self, prepare: Callable[[Weight], Weight]) -> ModelWeights:
        """The same with each matrix laid out by `prepare`, in place, but those that are read in other ways too.

        These are `kv_b`, which attention takes apart by head, and a head that is the embedding.
        """
        table = self.embed.table if isinstance(self.embed, HeldEmbedding) else None
        tied = isinstance(self.lm_head, DenseWeight) and self.lm_head.data is table
        return dataclasses.replace(
            self,
            layers=tuple(_prepared(layer, prepare) for layer in self.layers),
            lm_head=self.lm_head if tied else prepare(self.lm_head),
        )

    @staticmethod
    def assemble(spec: ModelSpec, loaded: Loaded, share: Share = WHOLE) -> ModelWeights:
        """Group what `models.loader.load_weights` returned for `share`; `spec` is already narrowed to it."""
        reader = _Reader(loaded)
        layers = tuple(_layer(layer, reader.under(f"layers.{i}"), share) for i, layer in enumerate(spec.layers))
        embed = reader.embedding()
        if spec.tied_embedding:
            assert isinstance(embed, HeldEmbedding), "a head is read whole in every step"
            head: Weight = DenseWeight(embed.table)
        else:
            head = reader.weight("lm_head")
        return ModelWeights(embed, layers, reader.tensor("norm"), head, share.of(spec.vocab).start)


def _matrices(group: Any) -> Iterator[Weight]:
    """Weights in the fields of a dataclass of this file, and of those it holds."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, Weight):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from _matrices(value)


def _prepared(group: _Group, prepare: Callable[[Weight], Weight]) -> _Group:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, Weight):
            changes[field.name] = value if field.name == "kv_b" else prepare(value)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _prepared(value, prepare)  # type: ignore[type-var]
    return dataclasses.replace(group, **changes)


class _Reader:
    """Names under a prefix, with the type each is expected to have."""

    def __init__(self, loaded: Loaded, prefix: str = "") -> None:
        self.loaded, self.prefix = loaded, prefix

    def under(self, name: str) -> _Reader:
        return _Reader(self.loaded, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return self.prefix + name in self.loaded

    def tensor(self, name: str) -> Tensor:
        value = self.loaded[self.prefix + name]
        assert isinstance(value, Tensor), self.prefix + name
        return value

    def weight(self, name: str) -> Weight:
        value = self.loaded[self.prefix + name]
        assert isinstance(value, Weight), self.prefix + name
        return value

    def embedding(self) -> Embedding:
        value = self.loaded[EMBEDDING]
        return value if isinstance(value, StoredEmbedding) else HeldEmbedding(self.tensor(EMBEDDING))

    def swiglu(self) -> SwigluWeights:
        return SwigluWeights(self.weight("gate"), self.weight("up"), self.weight("down"))


def _layer(layer: LayerSpec, reader: _Reader, share: Share) -> LayerWeights:
    mixer: KdaWeights | MlaWeights
    if isinstance(layer.mixer, KdaSpec):
        mixer = _kda(layer.mixer, reader.under("kda"))
    else:
        mixer = _mla(layer.mixer, reader.under("mla"))
    ffn: SwigluWeights | MoeWeights
    if isinstance(layer.ffn, DenseSpec):
        ffn = reader.under("ffn").swiglu()
    else:
        moe = reader.under("moe")
        shared = moe.under("shared").swiglu() if moe.has("shared.gate") else None
        experts, first = moe.under("experts").swiglu(), share.experts(layer.ffn.experts).start
        ffn = MoeWeights(moe.tensor("router"), moe.tensor("router_bias"), experts, shared, first)
    return LayerWeights(reader.tensor("mixer_norm"), reader.tensor("ffn_norm"), mixer, ffn)


def _kda(spec: KdaSpec, r: _Reader) -> KdaWeights:
    conv = torch.cat([r.tensor(f"{x}_conv").reshape(spec.width, spec.taps) for x in "qkv"])
    projections = {name: r.weight(name) for name in ("q", "k", "v", "f_a", "f_b", "g_a", "g_b", "b", "o")}
    return KdaWeights(
        **projections,
        conv=conv,
        a_log=r.tensor("a_log").reshape(-1),
        dt_bias=r.tensor("dt_bias").reshape(spec.heads, spec.head_dim),
        norm=r.tensor("norm"),
    )


def _mla(spec: MlaSpec, r: _Reader) -> MlaWeights:
    low_rank = spec.q_rank is not None
    return MlaWeights(
        q=None if low_rank else r.weight("q"),
        q_a=r.weight("q_a") if low_rank else None,
        q_norm=r.tensor("q_norm") if low_rank else None,
        q_b=r.weight("q_b") if low_rank else None,
        kv_a=r.weight("kv_a"),
        kv_norm=r.tensor("kv_norm"),
        kv_b=r.weight("kv_b"),
        o=r.weight("o"),
    )
