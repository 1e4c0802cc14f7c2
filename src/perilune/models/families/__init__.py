"""One reader per model family: config.json -> ModelSpec, and the names and shapes of its tensors.

The only place that knows hub key names, hub tensor names and 1-based layer lists. Never: torch, file access, or
arithmetic on weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.families import deepseek_v3, glm4_moe_lite, kimi_linear
from perilune.models.spec import ModelSpec, TensorSpec


class Family(Protocol):
    """What each reader module offers. `MODEL_TYPES` maps a config's model_type to the architecture it implies."""

    FAMILY: str
    ARCHITECTURES: tuple[str, ...]
    MODEL_TYPES: dict[str, str]

    def read(
        self, config: Mapping[str, Any], architecture: str, generation: Mapping[str, Any] | None = None
    ) -> ModelSpec: ...

    def tensors(self, spec: ModelSpec) -> Iterator[TensorSpec]: ...

    def skips(self, stored: str, spec: ModelSpec) -> bool: ...


FAMILIES: tuple[Family, ...] = (kimi_linear, deepseek_v3, glm4_moe_lite)


def read_spec(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec of a config.json, with the stop ids of generation_config.json if there is one.

    Raises UnsupportedError for an architecture or option this build cannot compute, CheckpointError for a config that
    is incomplete or contradicts itself; both name the key.
    """
    family, architecture = _find(config)
    return family.read(config, architecture, generation)


def family_of(spec: ModelSpec) -> Family:
    """The reader that made `spec`."""
    return next(family for family in FAMILIES if spec.family == family.FAMILY)


def _find(config: Mapping[str, Any]) -> tuple[Family, str]:
    listed = config.get("architectures")
    if listed is not None and not (isinstance(listed, list) and all(isinstance(name, str) for name in listed)):
        raise CheckpointError("config.json: architectures is not a list of names.")
    model_type = config.get("model_type")
    for family in FAMILIES:
        for name in listed or ():
            if name in family.ARCHITECTURES:
                return family, name
        if not listed and isinstance(model_type, str) and model_type in family.MODEL_TYPES:
            return family, family.MODEL_TYPES[model_type]
    asked = ", ".join(listed) if listed else f"model_type {model_type!r}"
    known = ", ".join(name for family in FAMILIES for name in family.ARCHITECTURES)
    raise UnsupportedError(
        f"The architecture {asked} is not supported.", f"This build knows {known}.", "Choose a model of one of these."
    )
