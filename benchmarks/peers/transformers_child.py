"""transformers behind the benchmark's commands: the slice's shapes in bf16, with random values of its own.

It stores no 4-bit form of these models, so its numbers say what plain PyTorch does, at four times the bytes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from peers.protocol import serve
from peers.workloads import random_tokens

_make: Any = transformers.AutoModelForCausalLM.from_config


class Transformers:
    """One batch of equal sequences, greedy, with the cache that `use_cache` gives."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        config = json.loads((Path(model) / "config.json").read_text())
        for key in ("quantization_config", "auto_map", "transformers_version"):
            config.pop(key, None)
        made = transformers.AutoConfig.for_model(**config)
        self._model = _make(made, dtype=torch.bfloat16).eval()
        self._vocab: int = config["vocab_size"]
        self.about = f"transformers {transformers.__version__}, torch {torch.__version__}, bf16"

    @torch.inference_mode()
    def prefill(self, tokens: int, depth: int, seed: int) -> float:
        _refuse(depth)
        ids = torch.tensor([random_tokens(seed, tokens, self._vocab)])
        started = time.perf_counter()
        self._model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - started

    @torch.inference_mode()
    def decode(self, tokens: int, depth: int, sequences: int, seed: int) -> float:
        _refuse(depth)
        cache: Any = None
        ids = torch.tensor([[token] for token in random_tokens(seed, sequences, self._vocab)])
        started = 0.0
        for step in range(tokens + 1):
            if step == 1:
                started = time.perf_counter()
            out = self._model(ids, past_key_values=cache, use_cache=True)
            ids, cache = out.logits.argmax(-1), out.past_key_values
        return time.perf_counter() - started

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Any:
        return self._model(torch.tensor([tokens])).logits[0].float().numpy()

    def report(self) -> dict[str, Any]:
        return {}


def _refuse(depth: int) -> None:
    if depth:
        raise ValueError("transformers is measured from an empty cache only")


if __name__ == "__main__":
    serve(Transformers)
