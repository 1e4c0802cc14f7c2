"""DeepSeek-V3 and the models built like it: Kimi-K2, and the text part of Kimi-K2.5. Imports no torch.

Every layer is MLA with rotated keys; the first few feed-forwards are dense, the others mixture of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perilune.models.families import common
from perilune.models.families.fields import Fields
from perilune.models.spec import DenseSpec, LayerSpec, MlaSpec, ModelSpec, TensorSpec

FAMILY = "deepseek_v3"
MULTIMODAL = "KimiK25ForConditionalGeneration"
ARCHITECTURES: tuple[str, ...] = ("DeepseekV3ForCausalLM", "KimiK2ForCausalLM", MULTIMODAL)
MODEL_TYPES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_k25": MULTIMODAL,
}

_OTHER_MODALITIES = ("vision_tower.", "mm_projector.")


def read(config: Mapping[str, Any], architecture: str, generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec of a config.json of this family. Raises CheckpointError or UnsupportedError naming the key."""
    whole = Fields(config)
    fields = whole.section("text_config") if architecture == MULTIMODAL else whole
    return read_decoder(FAMILY, architecture, fields, config, generation)


def read_decoder(
    family: str,
    architecture: str,
    fields: Fields,
    outer: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
) -> ModelSpec:
    """A decoder of MLA layers only, from `fields`; keys a nested config leaves out come from the `outer` one."""
    common.refuse_unknown_layers(fields)
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    vocab, count = fields.integer("vocab_size"), common.read_layer_count(fields)
    mla = common.read_mla(fields, rotated=True)
    dense = DenseSpec(fields.integer("intermediate_size"))
    ffns = common.read_ffns(fields, count, dense, common.read_moe(fields))
    merged = Fields({**outer, **{k: v for k, v in fields.config.items() if v is not None}}, fields.where)
    return ModelSpec(
        family=family,
        architecture=architecture,
        layers=tuple(LayerSpec(mla, ffn) for ffn in ffns),
        vocab=vocab,
        hidden=fields.integer("hidden_size"),
        norm_eps=fields.number("rms_norm_eps"),
        max_context=fields.integer("max_position_embeddings"),
        dtype=common.read_dtype(merged.config),
        stop_ids=common.stop_ids(vocab, fields.config, outer, generation),
        bos_id=merged.optional_integer("bos_token_id"),
        pad_id=merged.optional_integer("pad_token_id"),
        tied_embedding=merged.flag("tie_word_embeddings", default=False),
    )


def tensors(spec: ModelSpec) -> Iterator[TensorSpec]:
    """Every tensor the decoder needs."""
    return decoder_tensors(spec, _prefix(spec))


def decoder_tensors(spec: ModelSpec, prefix: str) -> Iterator[TensorSpec]:
    """The tensors of a decoder of MLA layers, stored under `prefix`."""
    yield from common.frame_tensors(spec, prefix)
    for i, layer in enumerate(spec.layers):
        name, stored = f"layers.{i}", f"{prefix}model.layers.{i}"
        yield from common.norm_tensors(spec, name, stored)
        assert isinstance(layer.mixer, MlaSpec)
        yield from common.mla_tensors(layer.mixer, spec.hidden, f"{name}.mla", f"{stored}.self_attn")
        yield from common.ffn_tensors(layer.ffn, spec.hidden, name, stored, common.DEEPSEEK_MOE)


def skips(stored: str, spec: ModelSpec) -> bool:
    """Tensors that belong in the files but not in the decoder: vision, and what no family runs."""
    prefix = _prefix(spec)
    if prefix and stored.startswith(_OTHER_MODALITIES):
        return True
    return common.not_in_decoder(stored, spec, prefix)


def _prefix(spec: ModelSpec) -> str:
    return "language_model." if spec.architecture == MULTIMODAL else ""
