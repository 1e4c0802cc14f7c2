"""Makes benchmarks/ importable, and one tiny slice that several tests read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

TINY: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "dtype": "bfloat16", "vocab_size": 512,
    "hidden_size": 64, "num_hidden_layers": 9, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-05, "model_max_length": 4096,
    "mla_use_nope": True, "q_lora_rank": None, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "num_experts": 4, "num_experts_per_token": 2, "num_shared_experts": 1,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid", "moe_renormalize": True, "routed_scaling_factor": 2.0,
    "num_expert_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    "linear_attn_config": {
        "num_heads": 2, "head_dim": 32, "short_conv_kernel_size": 4, "full_attn_layers": [2, 4],
        "kda_layers": [1, 3, 5, 6, 7, 8, 9],
    },
}  # fmt: skip
LAYERS = 3


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of a model too small for any number to mean something."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="session")
def tiny_slice(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first three layers: KDA with a dense layer, MLA and KDA with experts."""
    from peers.slices import Model, ensure_slice, slice_config

    model = Model(str(tiny_model), "Tiny", LAYERS, 2)
    return ensure_slice(tmp_path_factory.mktemp("slices") / "tiny", slice_config(model, LAYERS, vocab=256))
