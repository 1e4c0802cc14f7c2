"""A slice as a GGUF file for llama.cpp: the same numbers, bit for bit.

python -m peers.gguf_file SLICE FILE        (in the peer's environment; imports no torch)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gguf import (  # type: ignore[import-not-found]  # in the peer's environment alone
    ExpertGatingFuncType,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
)

from peers.gguf_plan import Source, plan
from perilune.models.spec import DenseSpec, KdaSpec, MlaSpec, ModelSpec, MoeSpec


def write_metadata(writer: GGUFWriter, spec: ModelSpec, config: dict[str, Any]) -> None:
    """The keys llama.cpp reads for a model of this shape; no vocabulary, since only ids are fed."""
    mla = next(layer.mixer for layer in spec.layers if isinstance(layer.mixer, MlaSpec))
    moe = next(layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec))
    dense = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, DenseSpec)]
    kda = next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, KdaSpec)), None)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(spec.vocab)
    writer.add_block_count(len(spec.layers))
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_leading_dense_block_count(len(dense))
    # Absorbed: one key head of latent and shared part, decompressed after attention.
    writer.add_head_count(mla.heads)
    writer.add_head_count_kv([0 if isinstance(layer.mixer, KdaSpec) else 1 for layer in spec.layers] if kda else 1)
    writer.add_kv_lora_rank(mla.latent_rank)
    if mla.q_rank is not None:
        writer.add_q_lora_rank(mla.q_rank)
    writer.add_key_length(mla.cache_dim)
    writer.add_value_length(mla.latent_rank)
    writer.add_key_length_mla(mla.qk_dim)
    writer.add_value_length_mla(mla.v_dim)
    writer.add_rope_dimension_count(mla.rope_dim)
    if mla.rope is not None:
        writer.add_rope_freq_base(mla.rope.theta)
    if kda is not None:
        writer.add_ssm_conv_kernel(kda.taps)
        writer.add_kda_head_dim(kda.head_dim)
    writer.add_expert_count(moe.experts)
    writer.add_expert_used_count(moe.top_k)
    writer.add_expert_group_count(moe.groups)
    writer.add_expert_group_used_count(moe.top_groups)
    writer.add_expert_feed_forward_length(moe.width)
    writer.add_expert_shared_count(moe.shared_width // moe.width)
    writer.add_expert_weights_scale(moe.scaling)
    writer.add_expert_weights_norm(moe.renormalise)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def write_gguf(folder: Path, file: Path) -> None:
    """`file` from the slice in `folder`; it appears under its name only when it is whole."""
    source = Source(folder)
    unfinished = file.with_name(file.name + ".unfinished")
    writer = GGUFWriter(unfinished, "kimi-linear" if source.spec.kda_layers else "deepseek2")
    write_metadata(writer, source.spec, source.config)
    planned = list(plan(source))
    for tensor in planned:
        shape, dtype = tensor.stored
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.nbytes, raw_dtype=GGMLQuantizationType[tensor.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in planned:
        writer.write_tensor_data(tensor.make())
    writer.close()
    unfinished.rename(file)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
