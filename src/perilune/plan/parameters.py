"""How many numbers a model is made of, from its spec alone: no checkpoint, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from perilune.models.spec import DenseSpec, KdaSpec, MlaSpec, ModelSpec, MoeSpec


@dataclass(frozen=True)
class Parameters:
    """Parameters by what decides whether a token reads them.

    `embedding` is a look-up of one row; `head` is 0 if tied (then the embedding is read as the head). `experts` are
    all routed experts, `experts_active` those one token is sent to. `rest` is read for every token: mixers, norms,
    routers, shared experts and dense layers.
    """

    embedding: int
    head: int
    experts: int
    experts_active: int
    rest: int
    tied: bool

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.experts + self.rest

    @property
    def always(self) -> int:
        """Read for every decoded token: the rest, and the matrix that makes logits."""
        return self.rest + (self.embedding if self.tied else self.head)

    @property
    def active(self) -> int:
        """Read for one decoded token; the input embedding counts only where it is also the head."""
        return self.always + self.experts_active


def count_parameters(spec: ModelSpec) -> Parameters:
    """All parameters of `spec`, without layers a decoder skips (multi-token prediction, vision)."""
    experts = active = rest = 0
    for layer in spec.layers:
        rest += 2 * spec.hidden + _mixer(layer.mixer, spec.hidden)
        if isinstance(layer.ffn, MoeSpec):
            one = 3 * layer.ffn.width * spec.hidden
            experts += layer.ffn.experts * one
            active += layer.ffn.top_k * one
        rest += _ffn_rest(layer.ffn, spec.hidden)
    table = spec.vocab * spec.hidden
    head = 0 if spec.tied_embedding else table
    return Parameters(table, head, experts, active, rest + spec.hidden, spec.tied_embedding)


def _mixer(mixer: KdaSpec | MlaSpec, hidden: int) -> int:
    return _kda(mixer, hidden) if isinstance(mixer, KdaSpec) else _mla(mixer, hidden)


def _kda(m: KdaSpec, hidden: int) -> int:
    projections = 4 * m.width * hidden + m.heads * hidden  # q, k, v, o and beta
    gates = 2 * m.gate_rank * (hidden + m.width)  # decay and output gate, both through a narrow middle
    return projections + gates + 3 * m.width * m.taps + m.heads + m.width + m.head_dim  # convs, A_log, dt_bias, norm


def _mla(m: MlaSpec, hidden: int) -> int:
    wide = m.heads * m.qk_dim
    query = wide * hidden if m.q_rank is None else m.q_rank * (hidden + 1 + wide)
    latent = m.cache_dim * hidden + m.latent_rank
    return query + latent + m.heads * (m.nope_dim + m.v_dim) * m.latent_rank + hidden * m.heads * m.v_dim


def _ffn_rest(ffn: DenseSpec | MoeSpec, hidden: int) -> int:
    """A dense layer, or what a MoE layer computes for every token: router, its bias, shared experts."""
    if isinstance(ffn, DenseSpec):
        return 3 * ffn.width * hidden
    return ffn.experts * (hidden + 1) + 3 * ffn.shared_width * hidden
