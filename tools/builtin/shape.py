"""The built-in model's config.json: Kimi-Linear's own keys with small numbers."""

from __future__ import annotations

from typing import Any

BASE_VOCAB = 992
VOCAB = 1024
TRAINED_LENGTH = 512
"""Tokens of the longest training row. Retrieval is scored at once, twice and four times this."""

_SPECIALS = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "[EOT]",
    10: "<|im_system|>",
    11: "<|tool_calls_section_begin|>",
    12: "<|tool_calls_section_end|>",
    13: "<|tool_call_begin|>",
    14: "<|tool_call_argument_begin|>",
    15: "<|tool_call_end|>",
    17: "<|im_middle|>",
    18: "<|media_begin|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    22: "<think>",
    23: "</think>",
    30: "[UNK]",
    31: "[PAD]",
}

SPECIALS: dict[str, int] = {
    _SPECIALS.get(offset, f"<|reserved_token_{BASE_VOCAB + offset}|>"): BASE_VOCAB + offset for offset in range(32)
}
"""Kimi's special tokens at Kimi's own offsets from the end of the base vocabulary (its last two moved up to fit)."""

ORDINARY = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<think>",
    "</think>",
)
"""Added tokens that are `special: false`: they stay in decoded text, for the parsers to find."""

KDA_LAYERS = (1, 3)
MLA_LAYERS = (2, 4)


def config() -> dict[str, Any]:
    """config.json in the hub's key names. Layer lists count from 1."""
    return {
        "architectures": ["KimiLinearForCausalLM"],
        "bos_token_id": SPECIALS["[BOS]"],
        "dtype": "bfloat16",
        "eos_token_id": SPECIALS["<|im_end|>"],
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "kv_lora_rank": 64,
        "linear_attn_config": {
            "full_attn_layers": list(MLA_LAYERS),
            "head_dim": 32,
            "kda_layers": list(KDA_LAYERS),
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
        "mla_use_nope": True,
        "model_max_length": 16384,
        "model_type": "kimi_linear",
        "moe_intermediate_size": 128,
        "moe_layer_freq": 1,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_attention_heads": 4,
        "num_expert_group": 1,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "num_hidden_layers": len(KDA_LAYERS) + len(MLA_LAYERS),
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 0,
        "num_shared_experts": 1,
        "pad_token_id": SPECIALS["[PAD]"],
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.446,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "transformers_version": "4.57.1",
        "use_cache": True,
        "use_grouped_topk": True,
        "v_head_dim": 32,
        "vocab_size": VOCAB,
    }
