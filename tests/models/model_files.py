"""Model files for tests: real configs as published, edited checkpoints, quantisers written as plainly as possible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KIMI_LINEAR: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "dtype": "bfloat16",
    "vocab_size": 163840, "hidden_size": 2304, "num_hidden_layers": 27, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": 72, "intermediate_size": 9216, "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "model_max_length": 1048576, "rope_theta": 10000.0, "rope_scaling": None, "mla_use_nope": True,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1, "moe_intermediate_size": 1024,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_router_activation_func": "sigmoid", "moe_renormalize": True,
    "routed_scaling_factor": 2.446, "use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1,
    "num_nextn_predict_layers": 0, "tie_word_embeddings": False, "bos_token_id": 163584, "eos_token_id": 163586,
    "pad_token_id": 163839,
    "linear_attn_config": {
        "num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4, "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [n for n in range(1, 27) if n % 4],
    },
}  # fmt: skip

K2_TEXT: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2", "dtype": "bfloat16", "vocab_size": 163840,
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 18432, "first_k_dense_replace": 1, "n_routed_experts": 384, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.827, "rope_theta": 50000.0,
    "rms_norm_eps": 1e-05, "max_position_embeddings": 262144, "attention_bias": False, "hidden_act": "silu",
    "rope_scaling": {
        "type": "yarn", "factor": 64.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "num_nextn_predict_layers": 0, "tie_word_embeddings": False, "bos_token_id": 163584, "eos_token_id": 163585,
    "pad_token_id": 163839,
}  # fmt: skip

K25_INT4: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "dtype": "bfloat16",
    "text_config": K2_TEXT | {
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "ignore": [
                "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            ],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"], "input_activations": None,
                    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
                }
            },
        }
    },
}  # fmt: skip

DEEPSEEK_V3: dict[str, Any] = K2_TEXT | {
    "model_type": "deepseek_v3", "vocab_size": 129280, "num_attention_heads": 128, "num_key_value_heads": 128,
    "first_k_dense_replace": 3, "n_routed_experts": 256, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

GLM_FLASH: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "dtype": "bfloat16",
    "vocab_size": 154880, "hidden_size": 2048, "num_hidden_layers": 47, "num_attention_heads": 20,
    "num_key_value_heads": 20, "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64, "v_head_dim": 256, "intermediate_size": 10240, "n_routed_experts": 64,
    "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_intermediate_size": 1536, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 1.8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000, "rope_scaling": None, "partial_rotary_factor": 1.0,
    "max_position_embeddings": 202752, "num_nextn_predict_layers": 1, "eos_token_id": [154820, 154827, 154829],
    "pad_token_id": 154820, "tie_word_embeddings": False, "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip


def copy_golden(root: Path, name: str, target: Path) -> Path:
    """A copy of one golden checkpoint, without its reference outputs, that a test may break."""
    return Path(shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("golden.*")))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the folder's config.json in place."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a checkpoint in place; it becomes a single file without an index."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Every stored tensor of a folder, as the safetensors library reads it."""
    return {k: v for shard in sorted(folder.glob("model*.safetensors")) for k, v in load_file(shard).items()}


def shard_of(folder: Path, name: str) -> Path:
    """The file the index gives for `name`."""
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def quantise_int4(weight: Tensor, group: int, *, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight [N, K] -> q int8 [N, K] in -8..7, scale bf16 [N, groups], zero int8 [N, groups] or None."""
    pieces = weight.float().split(group, dim=1)
    if symmetric:
        scale = torch.stack([p.abs().amax(1) / 7.5 for p in pieces], 1).clamp_min(1e-6).bfloat16()
        zero = None
    else:
        low, high = torch.stack([p.amin(1) for p in pieces], 1), torch.stack([p.amax(1) for p in pieces], 1)
        scale = ((high - low) / 15).clamp_min(1e-6).bfloat16()
        zero = (-8 - low / scale.float()).round().clamp(-8, 7).to(torch.int8)
    q = torch.cat(
        [
            (p / scale[:, g, None].float() + (0 if zero is None else zero[:, g, None])).round().clamp(-8, 7)
            for g, p in enumerate(pieces)
        ],
        1,
    )
    return q.to(torch.int8), scale, zero


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> float8_e4m3fn [N, K], fp32 factor per 128 x 128 block."""
    rows, columns = weight.shape
    scale = torch.empty(-(-rows // 128), -(-columns // 128))
    data = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = (slice(i * 128, (i + 1) * 128), slice(j * 128, (j + 1) * 128))
            scale[i, j] = weight[block].float().abs().max() / 448
            data[block] = (weight[block].float() / scale[i, j]).to(torch.float8_e4m3fn)
    return data, scale
