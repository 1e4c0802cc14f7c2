"""Slices: the first layers of a real model, all shapes kept, random weights, stored as the hub stores them.

Every linear module is int4 with groups of 32 (compressed-tensors, W4A16), as in the 4-bit files people run. The rest
is what the hub has: norms, embedding, convolutions and router in bf16, gates and biases in fp32. Scales are bf16
values that fp16 holds too, so that the same bits can be written as Q4_0 (`gguf_file.py`).
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from perilune.models.config import read_config, read_json
from perilune.models.families import family_of, read_spec
from perilune.models.spec import ModelSpec, TensorSpec

CONFIGS = Path(__file__).parents[2] / "tests" / "data"
VOCAB = 24_576
GROUP = 32
RECIPE = 1  # goes up when the same name would mean other bits; older slices are then made again

# A nibble drawn evenly becomes one of these codes: bell-shaped, mean 0, as quantised weights are.
_CODES = np.array([-7, -5, -4, -3, -2, -1, -1, 0, 0, 1, 1, 2, 3, 4, 5, 7]) + 8
CODES_STD = 3.62
BYTES = np.array([low | high << 4 for high in _CODES for low in _CODES], dtype=np.uint8)


@dataclass(frozen=True)
class Model:
    """A real model: the folder of its config under tests/data, and how many of its layers a slice has.

    `least` is where every kind of layer has come once.
    """

    folder: str
    title: str
    layers: int
    least: int


MODELS = {
    "kimi": Model("kimi-linear-48b", "Kimi-Linear-48B", 4, 4),  # KDA KDA KDA MLA
    "glm": Model("glm-4.7-flash", "GLM-4.7-Flash", 6, 2),
}


def slice_config(model: Model, layers: int, vocab: int = VOCAB) -> dict[str, Any]:
    """The model's config.json, cut to `layers` layers and `vocab` tokens, with all linear modules declared int4."""
    config = read_json(CONFIGS / model.folder / "config.json")
    config |= {"num_hidden_layers": layers, "num_nextn_predict_layers": 0, "vocab_size": vocab}
    config |= {"eos_token_id": vocab - 1, "pad_token_id": vocab - 1}
    if "bos_token_id" in config:
        config["bos_token_id"] = vocab - 2
    if kda := config.get("linear_attn_config"):
        for kind in ("kda_layers", "full_attn_layers"):
            kda[kind] = [layer for layer in kda[kind] if layer <= layers]
    return config | {"quantization_config": _QUANTISED}


_QUANTISED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": [],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP,
                "dynamic": False, "actorder": None,
            },
        }
    },
}  # fmt: skip


def ensure_slice(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """`folder`, holding the slice of `config`; made unless it is there already from the same recipe."""
    made = {"recipe": RECIPE, "seed": seed, "config": config}
    marker = folder / "slice.json"
    if not marker.is_file() or read_json(marker) != made:
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_slice(unfinished, config, seed)
        (unfinished / marker.name).write_text(json.dumps(made))
        unfinished.rename(folder)
    return folder


def write_slice(folder: Path, config: dict[str, Any], seed: int) -> None:
    """A checkpoint of random weights in `folder`: config.json, one shard per layer, their index."""
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    spec = read_spec(config)
    shards = [list(tensors) for _, tensors in groupby(family_of(spec).tensors(spec), _layer_of)]
    where: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        stored = {name: value for tensor in tensors for name, value in _stored(tensor, spec, seed)}
        save_file(stored, folder / file)
        where |= dict.fromkeys(stored, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def slice_spec(folder: Path) -> ModelSpec:
    """What the slice in `folder` is."""
    return read_config(folder).spec


def _layer_of(tensor: TensorSpec) -> str:
    return ".".join(tensor.name.split(".")[:2]) if tensor.name.startswith("layers.") else ""


def _stored(tensor: TensorSpec, spec: ModelSpec, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, value) of everything that stands for `tensor`."""
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.stored.encode())]))
    if not tensor.quantisable:
        yield tensor.stored, dense(tensor, spec, random)
        return
    module = tensor.stored.removesuffix(".weight")
    rows, columns = tensor.shape
    codes = BYTES[np.frombuffer(random.bytes(rows * columns // 2), np.uint8)]
    yield f"{module}.weight_packed", torch.from_numpy(codes.view(np.int32).reshape(rows, columns // 8))
    yield f"{module}.weight_scale", _scales(tensor, random)
    yield f"{module}.weight_shape", torch.tensor(tensor.shape, dtype=torch.int32)


def _scales(tensor: TensorSpec, random: np.random.Generator) -> Tensor:
    """bf16 [N, K / 32] around the value that lets outputs have the variance of inputs.

    kv_b has one for all: the GGUF file holds its key half transposed, and groups run the other way there.
    """
    rows, columns = tensor.shape
    groups = columns // GROUP
    even = columns**-0.5 / CODES_STD
    if tensor.name.endswith(".kv_b"):
        return torch.full((rows, groups), even, dtype=torch.bfloat16)
    return torch.from_numpy(random.uniform(0.75 * even, 1.25 * even, (rows, groups))).bfloat16()


def dense(tensor: TensorSpec, spec: ModelSpec, random: np.random.Generator) -> Tensor:
    """Values of the size trained models have: norms near 1, decay rates of 1 to 16, steps of 0.001 to 0.1."""
    kind, shape = tensor.name.rsplit(".", 1)[-1], tensor.shape
    if kind == "a_log":
        values = np.log(random.uniform(1, 16, shape))
    elif kind == "dt_bias":
        step = np.exp(random.uniform(math.log(1e-3), math.log(0.1), shape))
        values = step + np.log(-np.expm1(-step))  # the inverse of softplus
    elif kind.endswith("norm"):
        values = random.uniform(0.9, 1.1, shape)
    elif kind == "router_bias":
        values = random.normal(0, 0.01, shape)
    elif kind.endswith("conv"):
        values = random.uniform(-0.5, 0.5, shape)
    elif kind == "router":
        values = random.normal(0, spec.hidden**-0.5, shape)
    else:
        assert kind == "embed", tensor.name
        values = random.normal(0, 1, shape)
    dtype = "float32" if kind in ("a_log", "dt_bias") else spec.dtype
    return torch.from_numpy(values).to(getattr(torch, dtype))
