"""What the families share: readers of MLA, RoPE and MoE keys, and the tensor lists that go with them.

Imports no torch. Math and sources: each spec class in `models/spec.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.families.fields import Fields
from perilune.models.spec import DenseSpec, MlaSpec, ModelSpec, MoeSpec, RopeSpec, Split, TensorSpec, YarnSpec

# Far above any model: a wrong count must not make the reader list tensors for hours.
_MAX_LAYERS = 10_000
_MAX_EXPERTS = 100_000

DTYPES = ("bfloat16", "float16", "float32")

# Every Kimi tokenizer has these ids; the configs name one of them, the models stop on all three
# ([EOS], <|im_end|>, [EOT]).
_KIMI_VOCAB = 163840
_KIMI_STOPS = (163585, 163586, 163593)

# Options of Kimi-K3, GLM-5.3 and DeepSeek-V3.2 that change the arithmetic. A reader that overlooked one would load
# such a checkpoint and answer fluent nonsense.
_UNKNOWN_LAYERS = (
    "attn_res_block_size", "gate_lower_bound", "hc_mult", "index_head_dim", "index_kpool", "index_n_heads",
    "index_topk", "linear_lower_bound", "mla_use_output_gate", "mlp_bias", "routed_expert_hidden_size",
    "sliding_window", "swiglu_limit", "use_full_rank_gate",
)  # fmt: skip


@dataclass(frozen=True)
class MoeNames:
    """How a family calls the MoE block and an expert's three matrices."""

    block: str
    gate: str
    up: str
    down: str


DEEPSEEK_MOE = MoeNames("mlp", "gate_proj", "up_proj", "down_proj")
KIMI_LINEAR_MOE = MoeNames("block_sparse_moe", "w1", "w3", "w2")


def refuse_unknown_layers(fields: Fields) -> None:
    """UnsupportedError for an option of a newer architecture, for biases, and for another activation."""
    fields.absent(*_UNKNOWN_LAYERS)
    fields.only("attention_bias", False)
    fields.only("hidden_act", "silu")


def read_dtype(config: Mapping[str, Any]) -> str:
    """The checkpoint's dtype under its old or new key; bfloat16, which all these families use, if it has none."""
    fields = Fields(config)
    name = fields.text("dtype", "torch_dtype", default="bfloat16").removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(
            f"config.json: dtype {name!r} is not supported.",
            f"Known: {', '.join(DTYPES)}.",
            "Correct dtype in the config.",
        )
    return name


def stop_ids(vocab: int, *configs: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Every `eos_token_id` of the configs, in order, plus the ids all Kimi vocabularies end a turn with."""
    found = [i for config in configs if config for i in Fields(config).ids("eos_token_id")]
    return tuple(dict.fromkeys([*found, *(_KIMI_STOPS if vocab == _KIMI_VOCAB else ())]))


def read_layer_count(fields: Fields) -> int:
    """How many layers the decoder has."""
    return fields.integer("num_hidden_layers", maximum=_MAX_LAYERS)


def read_rope(fields: Fields, dim: int) -> RopeSpec:
    """RoPE from `rope_theta` + `rope_scaling` (hub) or `rope_parameters` (transformers 5).

    Raises UnsupportedError for half-split pairs, partial rotation and every scaling but YaRN.
    """
    fields.only("rope_interleave", True)
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    scaling = fields.section(name) if fields.has(name) else Fields({}, fields.where)
    for holder in (fields, scaling):
        holder.only("partial_rotary_factor", 1.0, 1)
    theta = (scaling if scaling.has("rope_theta") else fields).number("rope_theta")
    if dim % 2:
        raise CheckpointError(f"config.json: qk_rope_head_dim = {dim} is odd.", "RoPE rotates pairs.")
    return RopeSpec(dim=dim, theta=theta, yarn=_read_yarn(scaling, fields))


def _read_yarn(scaling: Fields, fields: Fields) -> YarnSpec | None:
    kind = scaling.text("rope_type", "type", default="default")
    if kind == "default":
        return None
    if kind != "yarn":
        raise UnsupportedError(
            f"{scaling.where}: type {kind!r} is not supported.",
            "This build knows plain RoPE and YaRN.",
            "Choose another checkpoint.",
        )
    scaling.absent("attention_factor")
    scaling.only("truncate", True)
    return YarnSpec(
        factor=scaling.number("factor"),
        original_context=scaling.integer("original_max_position_embeddings"),
        beta_fast=scaling.number("beta_fast", default=32.0),
        beta_slow=scaling.number("beta_slow", default=1.0),
        mscale=scaling.number("mscale", default=1.0, above=-1.0),
        mscale_all_dim=scaling.number("mscale_all_dim", default=0.0, above=-1.0),
    )


def read_mla(fields: Fields, *, rotated: bool) -> MlaSpec:
    """Multi-head latent attention. `q_lora_rank` null means one query projection."""
    heads = fields.integer("num_attention_heads")
    fields.equal("num_key_value_heads", heads, "MLA has one key and value head per query head.")
    rope_dim = fields.integer("qk_rope_head_dim")
    return MlaSpec(
        heads=heads,
        nope_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=rope_dim,
        v_dim=fields.integer("v_head_dim"),
        latent_rank=fields.integer("kv_lora_rank"),
        q_rank=fields.optional_integer("q_lora_rank", minimum=1),
        rope=read_rope(fields, rope_dim) if rotated else None,
    )


def read_moe(fields: Fields) -> MoeSpec:
    """Router and experts, under DeepSeek's or Kimi-Linear's key names.

    Raises CheckpointError when experts, groups and top-k do not go together.
    """
    experts = fields.integer("n_routed_experts", "num_experts", "num_local_experts", maximum=_MAX_EXPERTS)
    width = fields.integer("moe_intermediate_size")
    moe = MoeSpec(
        experts=experts,
        top_k=fields.integer("num_experts_per_tok", "num_experts_per_token"),
        width=width,
        shared_width=width * fields.integer("n_shared_experts", "num_shared_experts", default=0, minimum=0),
        groups=fields.integer("n_group", "num_expert_group", default=1),
        top_groups=fields.integer("topk_group", default=1),
        renormalise=fields.flag("norm_topk_prob", "moe_renormalize", default=True),
        scaling=fields.number("routed_scaling_factor", default=1.0),
    )
    reachable = experts // moe.groups * moe.top_groups
    if experts % moe.groups or moe.top_groups > moe.groups or moe.top_k > reachable:
        raise CheckpointError(
            f"config.json: {experts} experts cannot be routed.",
            f"n_group {moe.groups}, topk_group {moe.top_groups}, num_experts_per_tok {moe.top_k} do not go together.",
            "Correct these keys in the config.",
        )
    return moe


def read_ffns(fields: Fields, layers: int, dense: DenseSpec, moe: MoeSpec) -> list[DenseSpec | MoeSpec]:
    """One feed-forward per layer, from `mlp_layer_types` or `first_k_dense_replace` + `moe_layer_freq`."""
    if fields.has("mlp_layer_types"):
        kinds = fields.choices("mlp_layer_types", layers, ("dense", "sparse"))
        return [moe if kind == "sparse" else dense for kind in kinds]
    first = fields.integer("first_k_dense_replace", minimum=0)
    every = fields.integer("moe_layer_freq", default=1)
    return [moe if i >= first and i % every == 0 else dense for i in range(layers)]


def frame_tensors(spec: ModelSpec, prefix: str) -> Iterator[TensorSpec]:
    """Embedding, final norm and output head."""
    yield TensorSpec("embed", f"{prefix}model.embed_tokens.weight", (spec.vocab, spec.hidden), split=Split("rows"))
    yield TensorSpec("norm", f"{prefix}model.norm.weight", (spec.hidden,))
    if not spec.tied_embedding:
        yield linear("lm_head", f"{prefix}lm_head", spec.vocab, spec.hidden, Split("rows"))


def norm_tensors(spec: ModelSpec, name: str, stored: str) -> Iterator[TensorSpec]:
    """The two RMSNorms of the layer called `name` here and `stored` in the files."""
    yield TensorSpec(f"{name}.mixer_norm", f"{stored}.input_layernorm.weight", (spec.hidden,))
    yield TensorSpec(f"{name}.ffn_norm", f"{stored}.post_attention_layernorm.weight", (spec.hidden,))


def mla_tensors(mla: MlaSpec, hidden: int, name: str, stored: str) -> Iterator[TensorSpec]:
    """Query (one matrix, or low rank with a norm), latent, its expansion, output."""
    query, by_head = mla.heads * mla.qk_dim, Split("rows", mla.heads)
    if mla.q_rank is None:
        yield linear(f"{name}.q", f"{stored}.q_proj", query, hidden, by_head)
    else:
        yield linear(f"{name}.q_a", f"{stored}.q_a_proj", mla.q_rank, hidden)
        yield TensorSpec(f"{name}.q_norm", f"{stored}.q_a_layernorm.weight", (mla.q_rank,))
        yield linear(f"{name}.q_b", f"{stored}.q_b_proj", query, mla.q_rank, by_head)
    yield linear(f"{name}.kv_a", f"{stored}.kv_a_proj_with_mqa", mla.cache_dim, hidden)
    yield TensorSpec(f"{name}.kv_norm", f"{stored}.kv_a_layernorm.weight", (mla.latent_rank,))
    expanded = mla.heads * (mla.nope_dim + mla.v_dim)
    yield linear(f"{name}.kv_b", f"{stored}.kv_b_proj", expanded, mla.latent_rank, by_head)
    yield linear(f"{name}.o", f"{stored}.o_proj", hidden, mla.heads * mla.v_dim, Split("columns", mla.heads))


def ffn_tensors(ffn: DenseSpec | MoeSpec, hidden: int, name: str, stored: str, names: MoeNames) -> Iterator[TensorSpec]:
    """The feed-forward of the layer called `name` here and `stored` in the files."""
    if isinstance(ffn, DenseSpec):
        yield from _swiglu(f"{name}.ffn", f"{stored}.mlp", ffn.width, hidden, DEEPSEEK_MOE)
        return
    ours, block = f"{name}.moe", f"{stored}.{names.block}"
    # The router is computed in fp32: it keeps what the files hold, and is never packed.
    yield TensorSpec(f"{ours}.router", f"{block}.gate.weight", (ffn.experts, hidden), keep="stored")
    yield TensorSpec(f"{ours}.router_bias", f"{block}.gate.e_score_correction_bias", (ffn.experts,), keep="float32")
    for e in range(ffn.experts):
        matrices = _swiglu(f"{ours}.experts.{e}", f"{block}.experts.{e}", ffn.width, hidden, names)
        yield from (replace(matrix, expert=(e, ffn.experts)) for matrix in matrices)
    if ffn.shared_width:
        yield from _swiglu(f"{ours}.shared", f"{block}.shared_experts", ffn.shared_width, hidden, DEEPSEEK_MOE)


def _swiglu(name: str, stored: str, width: int, hidden: int, names: MoeNames) -> Iterator[TensorSpec]:
    yield linear(f"{name}.gate", f"{stored}.{names.gate}", width, hidden, Split("rows"))
    yield linear(f"{name}.up", f"{stored}.{names.up}", width, hidden, Split("rows"))
    yield linear(f"{name}.down", f"{stored}.{names.down}", hidden, width, Split("columns"))


def linear(name: str, module: str, rows: int, columns: int, split: Split | None = None) -> TensorSpec:
    """A linear module's weight [rows, columns], which may be stored packed."""
    return TensorSpec(name, f"{module}.weight", (rows, columns), quantisable=True, split=split)


def not_in_decoder(stored: str, spec: ModelSpec, prefix: str) -> bool:
    """Whether `stored` belongs in the files of any family, but not in its decoder.

    That is RoPE tables, and layers after the last (multi-token prediction, which is not run).
    """
    if stored.endswith(".rotary_emb.inv_freq"):
        return True
    match = re.match(re.escape(prefix) + r"model\.layers\.(\d+)\.", stored)
    return match is not None and int(match.group(1)) >= len(spec.layers)
