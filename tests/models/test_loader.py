"""Loaded weights against the stored tensors, their dtypes, their bytes, and the memory it takes to load them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from model_files import all_tensors, copy_golden, edit_config, edit_tensors, quantise_fp8, quantise_int4
from safetensors.torch import save_file
from torch import Tensor

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models import loader
from perilune.models.checkpoint import Checkpoint
from perilune.models.families import family_of, read_spec
from perilune.models.loader import load_weights
from perilune.ops.linear.formats import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    pack_int4,
    unpack_int4,
)
from perilune.ops.linear.formats import quantise_int8 as round_to_int8
from perilune.ops.staging import BUFFER_BYTES, Staging

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tensor_of(weights: dict[str, object], name: str, dtype: torch.dtype) -> Tensor:
    """The values of a needed tensor by its name, taken out of its stack where it is an expert."""
    block, _, last = name.rpartition(".experts.")
    if block and last.count("."):
        number, part = last.split(".")
        weight = weights[f"{block}.experts.{part}"].expert(int(number))  # type: ignore[attr-defined]
    else:
        weight = weights[name]
    return weight if isinstance(weight, Tensor) else weight.dequantise(dtype)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["kimi_linear", "deepseek_v3", "glm4_moe_lite"])
def test_every_dense_tensor_arrives_with_its_stored_values(golden_root: Path, name: str, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(golden_root / name)
    weights, stored = load_weights(checkpoint, dtype), all_tensors(golden_root / name)
    for tensor in checkpoint.tensors:
        found = tensor_of(weights, tensor.name, dtype)
        assert found.shape == tensor.held_shape
        assert torch.equal(found, stored[tensor.stored].reshape(tensor.held_shape).to(found.dtype)), tensor.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tensors_that_decide_routing_and_decay_keep_their_precision(golden_root: Path, dtype: torch.dtype) -> None:
    for name, tensor in load_weights(Checkpoint.open(golden_root / "kimi_linear"), dtype).items():
        part = name.rpartition(".")[2]
        if part in ("a_log", "dt_bias", "router_bias"):
            assert tensor.dtype == torch.float32, name
        elif part == "router":
            assert tensor.dtype == torch.bfloat16, name
        elif isinstance(tensor, Tensor):
            assert tensor.dtype == dtype, name


@pytest.mark.parametrize("name", ["kimi_linear", "kimi_linear_w4a16", "glm4_moe_lite"])
def test_in_8_bits_dense_matrices_are_rounded_and_nothing_else(golden_root: Path, name: str) -> None:
    checkpoint = Checkpoint.open(golden_root / name)
    dense, rounded = (load_weights(checkpoint, torch.bfloat16, weight_bits=bits) for bits in (16, 8))
    held = 0
    for key, weight in rounded.items():
        plain = dense[key]
        held += weight.nbytes
        if isinstance(weight, Int8Weight):
            assert isinstance(plain, DenseWeight)
            assert ".experts." not in key
            assert not key.endswith("kv_b")
            expected = round_to_int8(plain.data, 32)
            assert torch.equal(weight.data, expected.data)
            assert torch.equal(weight.scale, expected.scale)
            error = (weight.dequantise(torch.float32) - plain.data).norm() / plain.data.norm()
            assert error < 0.01
        else:
            assert type(weight) is type(plain)
    assert any(isinstance(weight, Int8Weight) for weight in rounded.values())
    assert held == checkpoint.weight_bytes("bfloat16", 8) < checkpoint.weight_bytes("bfloat16")


def test_a_float32_router_is_not_rounded(golden_root: Path, tmp_path: Path) -> None:
    folder, name = copy_golden(golden_root, "deepseek_v3", tmp_path), "model.layers.1.mlp.gate.weight"
    precise = torch.randn(12, 112)
    edit_tensors(folder, lambda tensors: tensors.update({name: precise}))
    assert torch.equal(load_weights(Checkpoint.open(folder), torch.bfloat16)["layers.1.moe.router"], precise)


def test_names_shapes_and_kinds_are_those_nn_asks_for(golden_root: Path) -> None:
    weights = load_weights(Checkpoint.open(golden_root / "kimi_linear"), torch.float32)
    tensors = {"embed", "norm", "layers.0.mixer_norm", "layers.0.ffn_norm", "layers.0.kda.norm", "layers.3.mla.kv_norm"}
    linears = {"lm_head", "layers.0.kda.b", "layers.0.kda.f_a", "layers.3.mla.kv_b", "layers.0.ffn.gate"}
    assert all(isinstance(weights[name], Tensor) for name in tensors)
    assert all(isinstance(weights[name], DenseWeight) for name in linears)
    assert weights["layers.0.kda.q_conv"].shape == (64, 4)
    assert weights["layers.0.kda.a_log"].shape == (4,)
    assert weights["layers.1.moe.experts.gate"].shape == (12, 32, 96)
    assert weights["layers.1.moe.experts.down"].shape == (12, 96, 32)
    assert not [name for name in weights if ".experts.0" in name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_held_are_the_bytes_planned(golden: Path, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(golden)
    held = sum(weight.nbytes for weight in load_weights(checkpoint, dtype).values())
    assert held == checkpoint.weight_bytes(str(dtype).removeprefix("torch."))


def test_int4_experts_stay_packed_and_unpack_by_the_formula(golden_root: Path) -> None:
    folder = golden_root / "kimi_linear_w4a16"
    weights, stored = load_weights(Checkpoint.open(folder), torch.float32), all_tensors(folder)
    experts = weights["layers.2.moe.experts.down"]
    assert isinstance(experts, Int4Weight)
    assert (experts.group, experts.zero) == (32, None)
    for e in range(8):
        module = f"model.layers.2.block_sparse_moe.experts.{e}.w2"
        q = unpack_int4(stored[f"{module}.weight_packed"], 32)
        expected = q.bfloat16() * stored[f"{module}.weight_scale"].repeat_interleave(32, 1)
        assert torch.equal(experts.expert(e).dequantise(torch.float32), expected.float())


def test_quark_mxfp4_stays_packed_as_stored(golden_root: Path) -> None:
    folder = golden_root / "kimi_k25_mxfp4"
    weights, stored = load_weights(Checkpoint.open(folder), torch.bfloat16), all_tensors(folder)
    dense, experts = weights["layers.0.ffn.up"], weights["layers.1.moe.experts.gate"]
    assert isinstance(dense, Mxfp4Weight)
    assert isinstance(experts, Mxfp4Weight)
    assert torch.equal(dense.packed, stored["language_model.model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(dense.scale, stored["language_model.model.layers.0.mlp.up_proj.weight_scale"])
    module = "language_model.model.layers.1.mlp.experts.7.gate_proj"
    assert torch.equal(experts.packed[7], stored[f"{module}.weight"])


def test_compressed_tensors_mxfp4_reads_as_the_same_weight(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "kimi_k25_mxfp4", tmp_path)
    before = load_weights(Checkpoint.open(folder), torch.bfloat16)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in [
            name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dtype == torch.uint8
        ]:
            tensors[f"{name}_packed"] = tensors.pop(name)

    edit_tensors(folder, rename)
    after = load_weights(Checkpoint.open(folder), torch.bfloat16)
    for name, weight in before.items():
        if isinstance(weight, Mxfp4Weight):
            assert torch.equal(weight.dequantise(torch.float32), after[name].dequantise(torch.float32))


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("shape_dtype", [torch.int32, torch.int64, None], ids=["int32", "int64", "absent"])
def test_any_linear_module_may_be_int4(
    golden_root: Path, tmp_path: Path, group: int, symmetric: bool, shape_dtype: torch.dtype | None
) -> None:
    folder = copy_golden(golden_root, "kimi_linear", tmp_path)
    modules = {"layers.0.kda.q": "model.layers.0.self_attn.q_proj", "layers.0.kda.b": "model.layers.0.self_attn.b_proj"}
    expected = {}

    def pack(tensors: dict[str, Tensor]) -> None:
        for ours, module in modules.items():
            weight = tensors.pop(f"{module}.weight")
            q, scale, zero = quantise_int4(weight, group, symmetric=symmetric)
            tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"] = pack_int4(q), scale
            if zero is not None:
                tensors[f"{module}.weight_zero_point"] = pack_int4(zero.T.contiguous()).T.contiguous()
            if shape_dtype:
                tensors[f"{module}.weight_shape"] = torch.tensor(weight.shape, dtype=shape_dtype)
            expected[ours] = Int4Weight(pack_int4(q), scale, zero, group).dequantise(torch.bfloat16)

    edit_tensors(folder, pack)
    scheme = {"num_bits": 4, "type": "int", "group_size": group}
    edit_config(folder, lambda c: c.update(quantization_config={"config_groups": {"group_0": {"weights": scheme}}}))
    checkpoint = Checkpoint.open(folder)
    weights = load_weights(checkpoint, torch.bfloat16)
    for name, values in expected.items():
        found = weights[name]
        assert isinstance(found, Int4Weight)
        # 96 inputs in groups of 128: one short group.
        assert (found.group, found.zero is None) == (group, symmetric)
        assert torch.equal(found.dequantise(torch.bfloat16), values)
    assert sum(weight.nbytes for weight in weights.values()) == checkpoint.weight_bytes("bfloat16")


def test_a_weight_shape_that_contradicts_the_config_is_refused_by_name(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "kimi_linear_w4a16", tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.0.w1.weight_shape"
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.tensor([96, 32], dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match=r"experts\.0\.w1\.weight_shape says \[96, 32\]"):
        load_weights(Checkpoint.open(folder), torch.float32)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_fp8_blocks_load_for_single_modules_and_experts(
    golden_root: Path, tmp_path: Path, scale_dtype: torch.dtype
) -> None:
    folder = copy_golden(golden_root, "deepseek_v3", tmp_path)
    expected: dict[str, Tensor] = {}

    def quantise(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if "_proj" in n]:
            data, scale = quantise_fp8(tensors[name])
            tensors[name], tensors[f"{name}_scale_inv"] = data, scale.to(scale_dtype)
            expected[name] = Fp8BlockWeight(data, scale.to(scale_dtype).float()).dequantise(torch.float32)

    edit_tensors(folder, quantise)
    checkpoint = Checkpoint.open(folder)
    weights = load_weights(checkpoint, torch.float32)
    assert isinstance(weights["layers.2.moe.experts.up"], Fp8BlockWeight)
    for tensor in checkpoint.tensors:
        if tensor.stored in expected:
            assert torch.equal(tensor_of(weights, tensor.name, torch.float32), expected[tensor.stored])
    assert sum(weight.nbytes for weight in weights.values()) == checkpoint.weight_bytes("float32")


def test_tensors_at_odd_offsets_load(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "glm4_moe_lite", tmp_path)
    expected = load_weights(Checkpoint.open(folder), torch.bfloat16)
    for shard in folder.glob("model-*.safetensors"):
        raw = shard.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = raw[8 : 8 + length].rstrip(b" ")
        header += b" " * (1 + len(header) % 2)  # an odd length puts every tensor at an odd byte
        shard.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    checkpoint = Checkpoint.open(folder)
    assert all(tensor.offset % 2 for tensor in checkpoint.stored.values())
    for name, weight in load_weights(checkpoint, torch.bfloat16).items():
        before = expected[name]
        if isinstance(weight, DenseWeight):
            weight, before = weight.data, before.data  # type: ignore[union-attr]
        assert torch.equal(weight, before), name  # type: ignore[arg-type]


def test_progress_counts_up_to_the_stored_bytes_of_the_model(golden: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = Checkpoint.open(golden)
    load_weights(checkpoint, torch.bfloat16, lambda done, total: seen.append((done, total)))
    owned = {name for tensor in checkpoint.tensors for name in checkpoint.form_of(tensor).owned}
    total = sum(checkpoint.stored[name].nbytes for name in owned)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


def test_loaded_weights_do_not_depend_on_the_files(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "kimi_linear_w4a16", tmp_path)
    weights = load_weights(Checkpoint.open(folder), torch.bfloat16)
    before = digest(weights)
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert digest(weights) == before
    if sys.platform.startswith("linux"):
        assert str(folder) not in Path("/proc/self/maps").read_text()


def digest(weights: dict[str, object]) -> str:
    parts = [part for _, weight in sorted(weights.items()) for part in parts_of(weight)]
    return hashlib.sha256(b"".join(part.flatten().view(torch.uint8).numpy().tobytes() for part in parts)).hexdigest()


def parts_of(weight: object) -> list[Tensor]:
    return [weight] if isinstance(weight, Tensor) else list(weight.tensors.values())  # type: ignore[attr-defined]


def test_a_checkpoint_that_does_not_check_is_not_loaded(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "kimi_linear", tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({"mystery": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="mystery"):
        load_weights(Checkpoint.open(folder), torch.float32)


def test_a_file_that_shrank_after_opening_is_refused(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "kimi_linear", tmp_path)
    checkpoint = Checkpoint.open(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:4096])
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load_weights(checkpoint, torch.float32)


def test_a_model_cannot_run_in_an_integer_dtype(golden_root: Path) -> None:
    with pytest.raises(UnsupportedError, match="int8"):
        load_weights(Checkpoint.open(golden_root / "kimi_linear"), torch.int8)


def grown(golden_root: Path, folder: Path) -> None:
    """A dense checkpoint of about 200 MB in four shards, made from the golden config with a larger vocabulary."""
    config = json.loads((golden_root / "glm4_moe_lite" / "config.json").read_text())
    config.update(vocab_size=30_000, hidden_size=512, intermediate_size=8192, moe_intermediate_size=2048)
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_spec(config)
    shards: list[dict[str, Tensor]] = [{}, {}, {}, {}]
    for tensor in family_of(spec).tensors(spec):
        dtype = torch.float32 if tensor.keep == "float32" else torch.bfloat16
        smallest = min(shards, key=lambda shard: sum(t.nbytes for t in shard.values()))
        smallest[tensor.stored] = torch.ones(tensor.shape, dtype=dtype)
    weight_map = {}
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i}.safetensors")
        weight_map.update(dict.fromkeys(shard, f"model-{i}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


MEASURE = """
    import gc, json, sys, threading, torch
    from perilune.models.checkpoint import Checkpoint
    from perilune.models.loader import load_weights

    def resident(key):
        for line in open("/proc/self/status"):
            if line.startswith(key):
                return int(line.split()[1]) * 1024

    checkpoint = Checkpoint.open(sys.argv[1])
    checkpoint.check()
    torch.ones(1000, dtype=torch.bfloat16).float()
    open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
    before = resident("VmRSS")
    weights = load_weights(checkpoint, torch.bfloat16, device=torch.device(sys.argv[2]))
    print(json.dumps({"peak": resident("VmHWM") - before, "held": sum(w.nbytes for w in weights.values())}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_memory_is_the_weights_and_of_weights_on_a_device_a_few_buffers(
    golden_root: Path, tmp_path: Path, device: str
) -> None:
    grown(golden_root, tmp_path)
    shards = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert sum(shards) > 180e6
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path), device]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = json.loads(result.stdout)
    # 16 MB for the allocator and Python: less than half of what a mapped shard would add.
    assert min(shards) > 32e6
    held = measured["held"] if device == "cpu" else 0
    buffers = 0 if device == "cpu" else 2 * BUFFER_BYTES * torch.get_num_threads()
    assert held <= measured["peak"] <= held + buffers + 16e6


@pytest.mark.parametrize("model", ["kimi_linear_w4a16", "kimi_k25_mxfp4"])
def test_weights_that_pass_through_small_buffers_are_the_same(
    golden_root: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(golden_root / model)
    direct = load_weights(checkpoint, torch.bfloat16)
    queue = SimpleQueue[Staging]()
    queue.put(Staging(torch.device("cpu"), 1000))
    read = partial(loader._fill, staging=queue)
    monkeypatch.setattr(loader, "_fill", lambda shard, _, copy: read(shard, copy=copy))
    for name, staged in load_weights(checkpoint, torch.bfloat16).items():
        one, other = ([w] if isinstance(w, Tensor) else list(w.tensors.values()) for w in (direct[name], staged))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), name


def test_where_memory_is_shared_the_system_keeps_nothing_of_what_was_read(
    golden_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, forgotten = Checkpoint.open(golden_root / "kimi_linear_w4a16"), set[tuple[int, int]]()
    monkeypatch.setattr(loader, "shares_memory", lambda device: True)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, advice: forgotten.add((start, size)))
    load_weights(checkpoint, torch.bfloat16, device=torch.device("meta"))
    held = checkpoint.held("bfloat16")
    parts = {part.stored for entry in held for form in entry.forms for part in form.parts.values()}
    assert {(checkpoint.stored[name].offset, checkpoint.stored[name].nbytes) for name in parts} == forgotten
