"""Reading the golden folders: prompts, and what transformers computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
MAX_DIFFERENCE, MEAN_DIFFERENCE, STATE_DIFFERENCE = 2e-3, 1e-4, 1e-4


@dataclass(frozen=True)
class Golden:
    """One checkpoint; `tensors` as its README names them."""

    path: Path
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Golden:
        return cls(path, load_file(path / "golden.safetensors"))

    @property
    def lengths(self) -> list[int]:
        return sorted(int(name[7 : name.index(".")]) for name in self.tensors if name.endswith("input_ids"))

    def get(self, length: int, name: str) -> Tensor:
        return self.tensors[f"prompt_{length}.{name}"]

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self.get(length, "input_ids").tolist())

    def layers_with(self, length: int, name: str) -> list[int]:
        """Layers for which `layer_i.NAME` was stored."""
        start, end = f"prompt_{length}.layer_", f".{name}"
        return sorted(int(k[len(start) : -len(end)]) for k in self.tensors if k.startswith(start) and k.endswith(end))
