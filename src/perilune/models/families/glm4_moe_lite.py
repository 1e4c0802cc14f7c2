"""GLM-4.7-Flash. Imports no torch.

A DeepSeek-V3 decoder with other numbers: plain RoPE, several end-of-sequence ids, and a prediction layer in the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perilune.models.families import common, deepseek_v3
from perilune.models.families.fields import Fields
from perilune.models.spec import ModelSpec, TensorSpec

FAMILY = "glm4_moe_lite"
ARCHITECTURES: tuple[str, ...] = ("Glm4MoeLiteForCausalLM",)
MODEL_TYPES = {"glm4_moe_lite": "Glm4MoeLiteForCausalLM"}


def read(config: Mapping[str, Any], architecture: str, generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec of a config.json of this family. Raises CheckpointError or UnsupportedError naming the key."""
    return deepseek_v3.read_decoder(FAMILY, architecture, Fields(config), config, generation)


def tensors(spec: ModelSpec) -> Iterator[TensorSpec]:
    """Every tensor the decoder needs."""
    return deepseek_v3.decoder_tensors(spec, "")


def skips(stored: str, spec: ModelSpec) -> bool:
    """Tensors that belong in the files but not in the decoder: RoPE tables and the prediction layer."""
    return common.not_in_decoder(stored, spec, "")
