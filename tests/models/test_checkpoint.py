"""The golden checkpoints open and check; each way to break one gives an error that names the tensor or file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import all_tensors, copy_golden, edit_config, edit_tensors, shard_of
from torch import Tensor

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.checkpoint import Checkpoint
from perilune.models.spec import TensorSpec, WeightFormat


def check(folder: Path) -> None:
    Checkpoint.open(folder).check()


def formats(folder: Path) -> dict[str, WeightFormat]:
    checkpoint = Checkpoint.open(folder)
    return {tensor.name: checkpoint.format_of(tensor) for tensor in checkpoint.tensors}


def test_every_golden_checkpoint_opens_and_checks(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden)
    checkpoint.check()
    assert checkpoint.stored.keys() == all_tensors(golden).keys()


def test_bf16_goldens_are_dense_throughout(golden_root: Path) -> None:
    for name in ("kimi_linear", "deepseek_v3", "glm4_moe_lite"):
        assert set(formats(golden_root / name).values()) == {"dense"}


def test_only_the_routed_experts_of_the_w4a16_golden_are_int4(golden_root: Path) -> None:
    for name, found in formats(golden_root / "kimi_linear_w4a16").items():
        assert found == ("int4" if ".moe.experts." in name else "dense"), name


def test_experts_shared_experts_and_dense_layer_of_the_quark_golden_are_mxfp4(golden_root: Path) -> None:
    for name, found in formats(golden_root / "kimi_k25_mxfp4").items():
        packed = any(part in name for part in (".moe.experts.", ".moe.shared.", ".ffn."))
        assert found == ("mxfp4" if packed else "dense"), name


def needed(folder: Path) -> list[TensorSpec]:
    return list(Checkpoint.open(folder).tensors)


def stored_names(folder: Path) -> list[str]:
    """A needed stored tensor of each kind: the layer's number and the expert's taken out of its name."""
    checkpoint = Checkpoint.open(folder)
    owned = sorted(name for tensor in checkpoint.tensors for name in checkpoint.form_of(tensor).owned)
    kinds = {".".join("N" if part.isdigit() else part for part in name.split(".")): name for name in owned}
    return sorted(kinds.values())


def test_deleting_any_kind_of_tensor_names_it(broken: Path) -> None:
    whole = all_tensors(broken)
    for name in stored_names(broken):
        if name.endswith((".weight_shape", "weight_zero_point")):
            continue  # optional
        edit_tensors(broken, lambda tensors, name=name: replace(tensors, whole, without=name))
        # An expert without its packed form is reported as missing its plain one.
        with pytest.raises(CheckpointError, match=name.removesuffix("_packed")):
            check(broken)


def replace(tensors: dict[str, Tensor], whole: dict[str, Tensor], without: str) -> None:
    tensors.clear()
    tensors.update({name: tensor for name, tensor in whole.items() if name != without})


def test_transposing_or_cutting_any_kind_of_tensor_names_it(broken: Path) -> None:
    whole = all_tensors(broken)
    for name in stored_names(broken):
        if name.endswith(".weight_shape"):
            continue
        tensor = whole[name]
        changed = tensor.T if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1] else tensor.flatten()[:-1]

        def change(tensors: dict[str, Tensor], name: str = name, changed: Tensor = changed) -> None:
            tensors.update(whole | {name: changed.contiguous()})

        edit_tensors(broken, change)
        with pytest.raises(CheckpointError) as caught:
            check(broken)
        assert name in str(caught.value)


def test_a_wrong_dtype_names_the_tensor(broken: Path) -> None:
    whole = all_tensors(broken)
    for name in stored_names(broken):
        edit_tensors(broken, lambda tensors, name=name: tensors.update(whole | {name: whole[name].to(torch.int16)}))
        with pytest.raises((CheckpointError, UnsupportedError)) as caught:
            check(broken)
        assert name in str(caught.value)


def test_an_extra_tensor_is_named(broken: Path) -> None:
    edit_tensors(broken, lambda tensors: tensors.update({"model.layers.1.mystery.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mystery\.weight is not part of the model"):
        check(broken)


def test_five_tensors_are_named_and_the_rest_counted(broken: Path) -> None:
    count = len(needed(broken))
    edit_tensors(broken, lambda tensors: replace_all(tensors, {"x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=rf"And {count - 5} more\.") as caught:
        check(broken)
    assert str(caught.value).count("is missing") == 5


def replace_all(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors.update(others)


def test_a_truncated_shard_is_named(broken: Path) -> None:
    shard = broken / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        Checkpoint.open(broken)


def test_a_missing_shard_is_named(broken: Path) -> None:
    (broken / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        Checkpoint.open(broken)


def edit_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_that_promises_a_tensor_its_shard_lacks_names_both(broken: Path) -> None:
    index = json.loads((broken / "model.safetensors.index.json").read_text())["weight_map"]
    edit_index(broken, index | {"phantom": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match="phantom is missing from model-00001"):
        Checkpoint.open(broken)


def test_a_tensor_the_index_forgot_is_still_seen(broken: Path) -> None:
    index = json.loads((broken / "model.safetensors.index.json").read_text())["weight_map"]
    edit_index(broken, {name: file for name, file in index.items() if not name.endswith("model.norm.weight")})
    check(broken)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, "x"])
def test_an_index_without_a_map_is_named(broken: Path, weight_map: Any) -> None:
    edit_index(broken, weight_map)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(broken)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/hostname", "sub/model.safetensors", ""])
def test_an_index_cannot_point_out_of_its_folder(broken: Path, file: str) -> None:
    edit_index(broken, {"lm_head.weight": file})
    with pytest.raises(CheckpointError, match=r"index\.json names|is missing"):
        Checkpoint.open(broken)


def test_a_folder_without_weights_or_config_says_so(tmp_path: Path, golden: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_bytes((golden / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="holds no weights"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b"", b"[" * 50_000])
def test_a_config_that_is_no_json_object_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(tmp_path)


def test_stop_ids_come_from_generation_config_too(broken: Path) -> None:
    before = Checkpoint.open(broken).spec.stop_ids
    (broken / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, *before]}))
    assert Checkpoint.open(broken).spec.stop_ids == (*before, 5)


def w4a16(root: Path, tmp_path: Path) -> tuple[Path, str]:
    return copy_golden(root, "kimi_linear_w4a16", tmp_path), "model.layers.1.block_sparse_moe.experts.0.w1"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"weight_g_idx": torch.zeros(96, dtype=torch.int32)}, "weight_g_idx"),
        ({"weight_packed": torch.zeros(32, 24, dtype=torch.int32)}, "8 bits"),
        ({"weight_packed": torch.zeros(32, 48, dtype=torch.int64)}, "weight_packed"),
        (
            {
                "weight_packed": torch.zeros(32, 48, dtype=torch.uint8),
                "weight_scale": torch.ones(32, 6).to(torch.float8_e4m3fn),
                "weight_global_scale": torch.ones(1),
            },
            "NVFP4",
        ),
    ],
    ids=["activation order", "8 bit", "unknown word", "nvfp4"],
)
def test_a_format_that_cannot_be_read_is_refused_with_the_tensor(
    golden_root: Path, tmp_path: Path, extra: dict[str, Tensor], reason: str
) -> None:
    folder, module = w4a16(golden_root, tmp_path)
    edit_tensors(folder, lambda tensors: tensors.update({f"{module}.{key}": t for key, t in extra.items()}))
    with pytest.raises(UnsupportedError, match=reason) as caught:
        check(folder)
    assert module in str(caught.value)


def test_quark_blocks_of_several_rows_are_refused(golden_root: Path, tmp_path: Path) -> None:
    folder = copy_golden(golden_root, "kimi_k25_mxfp4", tmp_path)
    name = "language_model.model.layers.0.mlp.up_proj.weight_scale"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][::32].contiguous()}))
    with pytest.raises(UnsupportedError, match=r"up_proj\.weight_scale.*\[R, 32\]"):
        check(folder)


def test_fp8_with_a_scale_per_output_is_refused(golden_root: Path, tmp_path: Path) -> None:
    folder, name = copy_golden(golden_root, "deepseek_v3", tmp_path), "model.layers.0.self_attn.o_proj.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = torch.ones(tensors[name].shape[0], 1)

    edit_tensors(folder, change)
    with pytest.raises(UnsupportedError, match=r"o_proj\.weight_scale"):
        check(folder)


def test_experts_of_one_layer_in_two_formats_are_refused_by_name(golden_root: Path, tmp_path: Path) -> None:
    folder, module = w4a16(golden_root, tmp_path)
    module = module.replace("experts.0", "experts.3")

    def change(tensors: dict[str, Tensor]) -> None:
        for key in ("weight_packed", "weight_scale", "weight_shape"):
            del tensors[f"{module}.{key}"]
        tensors[f"{module}.weight"] = torch.zeros(32, 96, dtype=torch.bfloat16)

    edit_tensors(folder, change)
    with pytest.raises(UnsupportedError, match=r"experts\.3\.w1\.weight and .*experts\.0\.w1\.weight"):
        Checkpoint.open(folder).weight_bytes("bfloat16")


def test_the_shape_of_a_log_may_be_written_with_or_without_its_ones(golden_root: Path, tmp_path: Path) -> None:
    folder, _ = w4a16(golden_root, tmp_path)
    name = "model.layers.0.self_attn.A_log"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].reshape(-1)}))
    check(folder)


def test_a_config_of_another_size_is_refused_with_tensor_names(golden_root: Path, tmp_path: Path) -> None:
    folder, _ = w4a16(golden_root, tmp_path)
    edit_config(folder, lambda config: config.update(moe_intermediate_size=64))
    with pytest.raises(CheckpointError, match=r"experts\.0\.w1\.weight_packed has shape \[32, 12\].*\[64, 12\]"):
        check(folder)


def test_files_are_found_by_the_index(golden: Path) -> None:
    checkpoint = Checkpoint.open(golden)
    counts = Counter(tensor.file.name for tensor in checkpoint.stored.values())
    assert len(counts) == 2
    some = next(iter(checkpoint.stored))
    assert checkpoint.stored[some].file == shard_of(golden, some)
