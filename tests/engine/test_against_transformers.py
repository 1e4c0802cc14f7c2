"""Options that the golden models do not cover, against transformers with random weights: logits in fp32."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeLiteConfig,
    Glm4MoeLiteForCausalLM,
    KimiLinearConfig,
    KimiLinearForCausalLM,
    PreTrainedModel,
)

from perilune import LLM

MLA = {
    "vocab_size": 200, "hidden_size": 72, "intermediate_size": 100, "moe_intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 3, "num_key_value_heads": 3, "n_shared_experts": 2, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "kv_lora_rank": 24, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 20, "v_head_dim": 12, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "n_group": 1,
    "topk_group": 1, "q_lora_rank": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 64, "beta_fast": 1.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
DEEPSEEK: dict[str, dict[str, Any]] = {
    "grouped routing": {"n_group": 4, "topk_group": 2},
    "full-rank queries, weights not renormalised": {"q_lora_rank": None, "norm_topk_prob": False},
    "YaRN as in Kimi-K2, head stored and called tied": {"rope_scaling": YARN, "tie_word_embeddings": True},
    "YaRN with two different mscales": {
        "rope_scaling": {**YARN, "factor": 40, "original_max_position_embeddings": 32, "beta_fast": 32, "mscale": 0.707}
    },
}
KDA = {"num_heads": 2, "head_dim": 8, "full_attn_layers": [1, 2, 5], "kda_layers": [3, 4, 6]}
KIMI: dict[str, dict[str, Any]] = {
    "as the golden model": {},
    "sizes that share no factor": {
        "hidden_size": 88, "num_attention_heads": 3, "num_key_value_heads": 3, "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 4, "v_head_dim": 20, "kv_lora_rank": 24, "vocab_size": 301, "num_experts": 10,
        "num_experts_per_token": 3, "num_shared_experts": 2, "moe_intermediate_size": 24, "intermediate_size": 56,
        "linear_attn_config": {
            "num_heads": 5, "head_dim": 24, "short_conv_kernel_size": 4, "full_attn_layers": [2, 6],
            "kda_layers": [1, 3, 4, 5],
        },
    },
    "MLA first, convolution of three taps": {"linear_attn_config": {**KDA, "short_conv_kernel_size": 3}},
    "two dense layers, grouped routing": {"first_k_dense_replace": 2, "num_expert_group": 3, "topk_group": 2},
}  # fmt: skip


def randomise(model: PreTrainedModel) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.12)
            elif "norm" in name:
                parameter.uniform_(0.7, 1.3)
            elif "A_log" in name:
                parameter.uniform_(0, 2.7)
            else:
                parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.normal_(0, 0.3)


def same_logits(model: PreTrainedModel, path: Path) -> None:
    vocab = model.config.get_text_config().vocab_size
    with LLM(str(path), dtype="float32", max_context=256, max_running=1) as llm:
        for length in (5, 70, 130):
            ids = torch.randint(0, vocab, (length,))
            with torch.no_grad():
                expected = model(ids[None]).logits[0]
            difference = (llm.logits(ids.tolist()) - expected).abs()
            assert difference.max() < 1e-3
            assert difference.mean() < 1e-4


@pytest.mark.parametrize("options", DEEPSEEK.values(), ids=DEEPSEEK.keys())
def test_deepseek_v3_with(options: Mapping[str, Any], tmp_path: Path) -> None:
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**{**MLA, **options})).float().eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    same_logits(model, tmp_path)


def test_glm4_moe_lite_with_other_sizes(tmp_path: Path) -> None:
    model = Glm4MoeLiteForCausalLM(Glm4MoeLiteConfig(**{**MLA, "n_shared_experts": 1})).float().eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    same_logits(model, tmp_path)


@pytest.mark.parametrize("options", KIMI.values(), ids=KIMI.keys())
def test_kimi_linear_with(options: Mapping[str, Any], golden: Path, tmp_path: Path) -> None:
    base = json.loads((golden / "kimi_linear" / "config.json").read_text())
    for key in ("architectures", "auto_map"):
        base.pop(key, None)
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    model = KimiLinearForCausalLM(KimiLinearConfig(**{**base, **ids, **options})).float().eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    # transformers 5.23 saves the dense layer under the experts' name; the hub does not
    hub = {re.sub(r"block_sparse_moe\.(gate|up|down)_proj", r"mlp.\1_proj", k): v for k, v in load_file(file).items()}
    save_file(hub, file)
    same_logits(model, tmp_path)
