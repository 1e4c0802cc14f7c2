"""The checkpoint folder in the hub's layout: names, dtypes and files as Kimi-Linear's own repository has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builtin import shape
from builtin.network import Network

_FP32 = ("A_log", "dt_bias")
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def tensors(net: Network) -> dict[str, Tensor]:
    """Every tensor under its hub name: bf16, but A_log and dt_bias fp32; one entry per expert matrix."""
    found: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        head, _, last = name.rpartition(".")
        dtype = torch.float32 if last in _FP32 else torch.bfloat16
        if last in ("w1", "w2", "w3"):
            for e, matrix in enumerate(value):
                found[f"{head}.experts.{e}.{last}.weight"] = matrix.to(dtype).clone()
        else:
            found[name] = value.to(dtype).contiguous()
    return dict(sorted(found.items()))


def read(net: Network, folder: Path) -> None:
    """Load an exported checkpoint back into the training module."""
    stored = load_file(folder / "model.safetensors")
    state = net.state_dict()
    for name in state:
        head, _, last = name.rpartition(".")
        if last in ("w1", "w2", "w3"):
            count = state[name].shape[0]
            state[name] = torch.stack([stored.pop(f"{head}.experts.{e}.{last}.weight") for e in range(count)])
        else:
            state[name] = stored.pop(name)
    if stored:
        raise ValueError(f"{folder} holds {len(stored)} tensors that the network lacks, first {min(stored)}")
    net.load_state_dict(state)


def rounded(net: Network) -> Network:
    """The same network with the values that the checkpoint holds."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not name.endswith(_FP32):
                p.copy_(p.bfloat16().float())
    return net


def write(net: Network, folder: Path) -> None:
    """Weights and every JSON file; `tiktoken.model` has to be there already or be written beside."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(net), folder / "model.safetensors", metadata={"format": "pt"})
    _json(folder / "config.json", shape.config())
    ends = [shape.SPECIALS[name] for name in ("<|im_end|>", "[EOS]", "[EOT]")]
    pad = shape.SPECIALS["[PAD]"]
    _json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": pad, "max_length": 16384})
    _json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "chat_template.jinja").write_text(_TEMPLATE.read_text())


def _tokenizer_config() -> dict[str, Any]:
    added = {
        str(i): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": name not in shape.ORDINARY,
        }
        for name, i in shape.SPECIALS.items()
    }
    return {
        "added_tokens_decoder": added,
        "additional_special_tokens": [f"<|im_{name}|>" for name in ("end", "user", "assistant", "system", "middle")],
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "model_max_length": 16384,
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
