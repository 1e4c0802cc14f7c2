"""Kimi-Linear: three layers of Kimi Delta Attention to one of MLA without rotation. Imports no torch.

The hub's config lists the layers of each kind, counted from 1; transformers 5 writes one word per layer instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perilune.errors import CheckpointError
from perilune.models.families import common
from perilune.models.families.fields import Fields
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, ModelSpec, Split, TensorSpec

FAMILY = "kimi_linear"
ARCHITECTURES: tuple[str, ...] = ("KimiLinearForCausalLM",)
MODEL_TYPES = {"kimi_linear": "KimiLinearForCausalLM"}


def read(config: Mapping[str, Any], architecture: str, generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec of a config.json of this family. Raises CheckpointError or UnsupportedError naming the key."""
    fields = Fields(config)
    common.refuse_unknown_layers(fields)
    fields.only("moe_router_activation_func", "sigmoid")
    fields.only("mla_use_nope", True)
    vocab, count = fields.integer("vocab_size"), common.read_layer_count(fields)
    eps = fields.number("rms_norm_eps")
    kda, mla = _read_kda(fields, eps), common.read_mla(fields, rotated=False)
    dense = DenseSpec(fields.integer("intermediate_size"))
    ffns = common.read_ffns(fields, count, dense, common.read_moe(fields))
    mixers = [kda if is_kda else mla for is_kda in _kda_mask(fields, count)]
    return ModelSpec(
        family=FAMILY,
        architecture=architecture,
        layers=tuple(LayerSpec(mixer, ffn) for mixer, ffn in zip(mixers, ffns, strict=True)),
        vocab=vocab,
        hidden=fields.integer("hidden_size"),
        norm_eps=eps,
        max_context=fields.integer("model_max_length", "max_position_embeddings"),
        dtype=common.read_dtype(config),
        stop_ids=common.stop_ids(vocab, config, generation),
        bos_id=fields.optional_integer("bos_token_id"),
        pad_id=fields.optional_integer("pad_token_id"),
        tied_embedding=fields.flag("tie_word_embeddings", default=False),
    )


def _read_kda(fields: Fields, eps: float) -> KdaSpec:
    if fields.has("linear_attn_config"):
        nested = fields.section("linear_attn_config")
        common.refuse_unknown_layers(nested)
        heads, dim = nested.integer("num_heads"), nested.integer("head_dim")
        taps = nested.integer("short_conv_kernel_size", minimum=2)
    else:
        heads, dim = fields.integer("linear_num_heads"), fields.integer("linear_head_dim")
        taps = fields.integer("linear_conv_kernel_dim", minimum=2)
    return KdaSpec(heads=heads, head_dim=dim, taps=taps, gate_rank=dim, norm_eps=eps)


def _kda_mask(fields: Fields, count: int) -> list[bool]:
    """For each layer, counted from 0, whether it is KDA."""
    if fields.has("layer_types"):
        kinds = fields.choices("layer_types", count, ("linear_attention", "full_attention"))
        return [kind == "linear_attention" for kind in kinds]
    lists = fields.section("linear_attn_config")
    kda, full = lists.integers("kda_layers"), lists.integers("full_attn_layers")
    if sorted(kda + full) != list(range(1, count + 1)):
        raise CheckpointError(
            f"{lists.where}: kda_layers and full_attn_layers do not name each layer of 1..{count} once.",
            f"They hold {len(kda)} and {len(full)} entries; layers are counted from 1.",
            "Correct both lists, or num_hidden_layers.",
        )
    return [i in set(kda) for i in range(1, count + 1)]


def tensors(spec: ModelSpec) -> Iterator[TensorSpec]:
    """Every tensor the decoder needs."""
    yield from common.frame_tensors(spec, "")
    for i, layer in enumerate(spec.layers):
        name, stored = f"layers.{i}", f"model.layers.{i}"
        yield from common.norm_tensors(spec, name, stored)
        attention = f"{stored}.self_attn"
        if isinstance(layer.mixer, KdaSpec):
            yield from _kda_tensors(layer.mixer, spec.hidden, f"{name}.kda", attention)
        else:
            yield from common.mla_tensors(layer.mixer, spec.hidden, f"{name}.mla", attention)
        yield from common.ffn_tensors(layer.ffn, spec.hidden, name, stored, common.KIMI_LINEAR_MOE)


def _kda_tensors(kda: KdaSpec, hidden: int, name: str, stored: str) -> Iterator[TensorSpec]:
    by_head = Split("rows", kda.heads)
    for part in ("q", "k", "v"):
        yield common.linear(f"{name}.{part}", f"{stored}.{part}_proj", kda.width, hidden, by_head)
    for part in ("q", "k", "v"):
        yield TensorSpec(
            f"{name}.{part}_conv",
            f"{stored}.{part}_conv1d.weight",
            (kda.width, 1, kda.taps),
            held=(kda.width, kda.taps),
            split=by_head,
        )
    # f is the decay, g the output gate; both go through a narrow middle.
    for part in ("f", "g"):
        yield common.linear(f"{name}.{part}_a", f"{stored}.{part}_a_proj", kda.gate_rank, hidden)
        yield common.linear(f"{name}.{part}_b", f"{stored}.{part}_b_proj", kda.width, kda.gate_rank, by_head)
    yield common.linear(f"{name}.b", f"{stored}.b_proj", kda.heads, hidden, by_head)
    yield TensorSpec(
        f"{name}.a_log", f"{stored}.A_log", (1, 1, kda.heads, 1), "float32", held=(kda.heads,), split=by_head
    )
    yield TensorSpec(f"{name}.dt_bias", f"{stored}.dt_bias", (kda.width,), "float32", held=(kda.width,), split=by_head)
    yield TensorSpec(f"{name}.norm", f"{stored}.o_norm.weight", (kda.head_dim,))
    yield common.linear(f"{name}.o", f"{stored}.o_proj", hidden, kda.width, Split("columns", kda.heads))


def skips(stored: str, spec: ModelSpec) -> bool:
    """Tensors that belong in the files but not in the decoder: layers after the last."""
    return common.not_in_decoder(stored, spec, "")
