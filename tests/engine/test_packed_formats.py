"""A packed checkpoint computes what the same checkpoint computes with its weights unpacked: bit for bit in fp32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perilune import LLM
from perilune.ops.linear.formats import Fp8BlockWeight, Int4Weight, Mxfp4Weight, Weight, pack_int4

Packed = tuple[dict[str, Tensor], Weight]


def fp8_blocks(name: str, w: Tensor) -> Packed:
    rows, columns = w.shape
    scale = torch.rand(-(-rows // 128), -(-columns // 128)) * 0.01 + 0.002
    full = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    data = (w.float() / full).clamp(-440, 440).to(torch.float8_e4m3fn)
    return {f"{name}.weight": data, f"{name}.weight_scale_inv": scale}, Fp8BlockWeight(data, scale)


def int4(name: str, w: Tensor, *, group: int, symmetric: bool) -> Packed:
    rows, columns = w.shape
    groups = -(-columns // group)
    q = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    scale = (torch.rand(rows, groups) * 0.05 + 0.01).to(torch.bfloat16)
    files = {
        f"{name}.weight_packed": pack_int4(q),
        f"{name}.weight_scale": scale,
        f"{name}.weight_shape": torch.tensor([rows, columns], dtype=torch.int64),
    }
    zero = None
    if not symmetric:
        zero = torch.randint(-8, 8, (rows, groups), dtype=torch.int8)
        files[f"{name}.weight_zero_point"] = pack_int4(zero.t().contiguous()).t().contiguous()
    return files, Int4Weight(pack_int4(q), scale, zero, group)


def mxfp4(name: str, w: Tensor) -> Packed:
    rows, columns = w.shape
    packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    scale = torch.randint(118, 124, (rows, columns // 32), dtype=torch.uint8)
    return {f"{name}.weight_packed": packed, f"{name}.weight_scale": scale}, Mxfp4Weight(packed, scale)


def compressed(group: int, symmetric: bool) -> dict[str, object]:
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, "ignore": []}


CASES: dict[str, tuple[Callable[[str, Tensor], Packed], dict[str, object]]] = {
    "FP8 in 128 x 128 blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "int4, groups of 32, symmetric": (lambda n, w: int4(n, w, group=32, symmetric=True), compressed(32, True)),
    "int4, groups of 32, asymmetric": (lambda n, w: int4(n, w, group=32, symmetric=False), compressed(32, False)),
    "int4, groups of 128, asymmetric": (lambda n, w: int4(n, w, group=128, symmetric=False), compressed(128, False)),
    "MXFP4 of compressed-tensors": (
        mxfp4,
        {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {}, "ignore": []},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_packed_equals_unpacked(
    case: tuple[Callable[[str, Tensor], Packed], dict[str, object]], golden: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    pack, quantisation = case
    source = golden / "kimi_linear"
    config = json.loads((source / "config.json").read_text())
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    tensors = {k: v for file in sorted(source.glob("model-*.safetensors")) for k, v in load_file(file).items()}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if (
            module.endswith((".w1", ".w3", ".w2", "q_proj", "kv_b_proj", "shared_experts.down_proj"))
            and tensor.dim() == 2
        ):
            files, weight = pack(module, tensor)
            packed |= files
            plain[name] = weight.dequantise(torch.float32)
        else:
            packed[name] = plain[name] = tensor
    logits = []
    for folder, content, settings in (("packed", packed, {"quantization_config": quantisation}), ("plain", plain, {})):
        (tmp_path / folder).mkdir()
        save_file(content, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps({**config, **settings}))
        with LLM(str(tmp_path / folder), dtype="float32", max_context=256, max_running=1) as llm:
            logits.append(llm.logits(range(100)))
            assert llm.generate([[5, 6, 7]])[0].token_ids
    assert torch.equal(*logits)
    assert logits[0].isfinite().all()
