"""Weight bytes from a config alone: equal to the loader's where there are files, and to published sizes where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_files import DEEPSEEK_V3, FP8, GLM_FLASH, K25_INT4, KIMI_LINEAR

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.checkpoint import Checkpoint
from perilune.models.config import read_config
from perilune.models.estimate import estimated_weight_bytes, read_scheme
from perilune.models.families import read_spec

INT4 = K25_INT4["text_config"]["quantization_config"]


def gigabytes(config: dict[str, Any], dtype: str = "bfloat16") -> float:
    return estimated_weight_bytes(config, read_spec(config), dtype) / 1e9


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_config_of_a_golden_model_predicts_what_its_files_need(
    golden: Path, dtype: str, bits: int, leave: bool
) -> None:
    files = read_config(golden / "config.json")
    predicted = estimated_weight_bytes(files.config, files.spec, dtype, bits, leave_embedding=leave)
    assert predicted == Checkpoint.open(golden).weight_bytes(dtype, bits, leave_embedding=leave)


@pytest.mark.parametrize(
    ("config", "expected"),
    [(KIMI_LINEAR, 98.2), (GLM_FLASH, 59.9), ({**DEEPSEEK_V3}, 1342.0), (K25_INT4, 594)],
    ids=["kimi-linear", "glm", "deepseek bf16", "k2.5 int4"],
)
def test_published_models_have_their_published_size(config: dict[str, Any], expected: float) -> None:
    assert gigabytes(config) == pytest.approx(expected, rel=2e-3)


def test_kimi_linear_with_int4_experts_and_with_mxfp4_experts() -> None:
    experts_only = ["re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\..*", "lm_head"]
    mxfp4 = {"weights": {"type": "float", "num_bits": 4, "group_size": 32}, "targets": ["Linear"]}
    fp4 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": mxfp4}, "ignore": experts_only}
    assert gigabytes({**KIMI_LINEAR, "quantization_config": {**INT4, "ignore": experts_only}}) == pytest.approx(
        30.5, abs=0.1
    )
    assert gigabytes({**KIMI_LINEAR, "quantization_config": fp4}) == pytest.approx(29.1, abs=0.1)


def test_deepseek_in_fp8_is_half_of_bf16_plus_what_stays_dense() -> None:
    found = gigabytes({**DEEPSEEK_V3, "quantization_config": FP8})
    head_and_embedding = 2 * 129280 * 7168 / 1e9
    assert found == pytest.approx(671.0 + head_and_embedding, rel=1e-3)


def test_asymmetric_int4_adds_a_byte_per_group() -> None:
    groups = {"group_0": {**INT4["config_groups"]["group_0"]}}
    groups["group_0"]["weights"] = {**groups["group_0"]["weights"], "symmetric": False}
    plain = {**KIMI_LINEAR, "quantization_config": {**INT4, "ignore": ["re:(?!.*experts\\.\\d)"]}}
    with_zero = {**plain, "quantization_config": {**plain["quantization_config"], "config_groups": groups}}
    experts = 26 * 256 * 3 * 1024 * 2304
    spec = read_spec(plain)
    difference = estimated_weight_bytes(with_zero, spec, "bfloat16") - estimated_weight_bytes(plain, spec, "bfloat16")
    assert difference == experts // 32


@pytest.mark.parametrize(
    ("ignore", "module", "covered"),
    [
        ("lm_head", "lm_head", False),
        ("lm_head", "language_model.lm_head", False),
        ("model.layers.0.self_attn", "model.layers.0.self_attn.q_proj", False),
        ("model.layers.0.self_attn", "model.layers.01.self_attn.q_proj", True),
        ("re:.*self_attn.*", "language_model.model.layers.3.self_attn.o_proj", False),
        ("re:self_attn", "model.layers.3.self_attn.o_proj", True),
        ("*self_attn*", "model.layers.3.self_attn.o_proj", False),
        ("model.layers.1.mlp.experts.1", "model.layers.1.mlp.experts.10.up_proj", True),
    ],
)
def test_ignore_entries_match_names_parents_patterns_and_prefixes(ignore: str, module: str, covered: bool) -> None:
    scheme = read_scheme({"quantization_config": {**INT4, "ignore": [ignore]}})
    assert scheme is not None
    assert scheme.covers(module) is covered


def test_quark_settings_nested_in_quant_config_are_found(golden_root: Path) -> None:
    config = json.loads((golden_root / "kimi_k25_mxfp4" / "config.json").read_text())
    quark = config.pop("quantization_config")
    nested = {"quantization_config": {"quant_method": "quark", "quant_config": quark, "json_export_config": {}}}
    assert read_scheme(nested) == read_scheme({"quantization_config": quark})
    assert read_scheme({"text_config": nested}) == read_scheme({"quantization_config": quark})


def test_no_quantisation_means_no_scheme() -> None:
    assert read_scheme(KIMI_LINEAR) is None
    assert read_scheme({"quantization_config": None, "text_config": {"quantization_config": {}}}) is None


@pytest.mark.parametrize(
    ("quantised", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "128 x 128"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "128 x 128"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int8"}}}, "Quark"),
        ({"quant_method": "quark"}, "Quark"),
        ({"quant_method": "compressed-tensors"}, "exactly one group"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": None}}}, "without weights"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"type": "int", "num_bits": 8, "group_size": 32}}},
            },
            "8 bits",
        ),
    ],
)
def test_an_unreadable_quantisation_is_named(quantised: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        gigabytes({**KIMI_LINEAR, "quantization_config": quantised})


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"re:\(unclosed"):
        gigabytes({**KIMI_LINEAR, "quantization_config": {**INT4, "ignore": ["re:(unclosed"]}})
