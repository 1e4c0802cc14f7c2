"""config.json -> ModelSpec: the published models, both generations of key names, and every refusal."""

from __future__ import annotations

import copy
import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import DEEPSEEK_V3, GLM_FLASH, K2_TEXT, K25_INT4, KIMI_LINEAR

from perilune.errors import CheckpointError, PeriluneError, UnsupportedError
from perilune.models.families import family_of, read_spec
from perilune.models.spec import DenseSpec, KdaSpec, MlaSpec, ModelSpec, MoeSpec

PUBLISHED = {"kimi_linear": KIMI_LINEAR, "k25": K25_INT4, "deepseek": DEEPSEEK_V3, "glm": GLM_FLASH}


def parameters(spec: ModelSpec) -> int:
    return sum(tensor.elements for tensor in family_of(spec).tensors(spec))


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {tensor.stored: tensor.shape for tensor in family_of(spec).tensors(spec)}


def test_kimi_linear_has_exactly_the_published_tensors_and_parameters() -> None:
    spec = read_spec(KIMI_LINEAR)
    assert len(list(family_of(spec).tensors(spec))) == 20_493
    assert parameters(spec) == 49_122_681_728
    assert spec.mla_layers == (3, 7, 11, 15, 19, 23, 26)
    assert spec.max_context == 1_048_576
    assert spec.norm_eps == 1e-5
    kda, mla = spec.layers[0].mixer, spec.layers[3].mixer
    assert kda == KdaSpec(heads=32, head_dim=128, taps=4, gate_rank=128, norm_eps=1e-5)
    assert isinstance(mla, MlaSpec)
    assert mla.rope is None
    assert mla.softmax_scale == pytest.approx(192**-0.5)
    assert spec.layers[0].ffn == DenseSpec(9216)
    assert all(layer.ffn == MoeSpec(256, 8, 1024, 1024, scaling=2.446) for layer in spec.layers[1:])


def test_kimi_linear_tensor_shapes_are_the_published_ones() -> None:
    found = shapes(read_spec(KIMI_LINEAR))
    layer = "model.layers.0.self_attn"
    assert found[f"{layer}.q_proj.weight"] == (4096, 2304)
    assert found[f"{layer}.k_conv1d.weight"] == (4096, 1, 4)
    assert found[f"{layer}.A_log"] == (1, 1, 32, 1)
    assert found[f"{layer}.f_b_proj.weight"] == (4096, 128)
    assert found[f"{layer}.o_norm.weight"] == (128,)
    assert found["model.layers.3.self_attn.q_proj.weight"] == (6144, 2304)
    assert found["model.layers.3.self_attn.kv_a_proj_with_mqa.weight"] == (576, 2304)
    assert found["model.layers.3.self_attn.kv_b_proj.weight"] == (8192, 512)
    assert found["model.layers.26.block_sparse_moe.experts.255.w2.weight"] == (2304, 1024)
    assert "q_a_proj" not in " ".join(found)


@pytest.mark.parametrize(
    ("config", "billions", "experts"),
    [(K25_INT4, 1026.4, 1014.7), (DEEPSEEK_V3, 671.0, 653.9), (GLM_FLASH, 29.94, 27.78)],
    ids=["k25", "deepseek", "glm"],
)
def test_parameter_counts_are_the_published_ones(config: dict[str, Any], billions: float, experts: float) -> None:
    spec = read_spec(config)
    routed = [t.elements for t in family_of(spec).tensors(spec) if ".moe.experts." in t.name]
    assert parameters(spec) / 1e9 == pytest.approx(billions, abs=0.06)
    assert sum(routed) / 1e9 == pytest.approx(experts, abs=0.06)


def test_k25_text_lies_under_its_prefix_and_has_the_published_yarn_scale() -> None:
    spec = read_spec(K25_INT4)
    assert all(tensor.stored.startswith("language_model.") for tensor in family_of(spec).tensors(spec))
    mla = spec.layers[60].mixer
    assert isinstance(mla, MlaSpec)
    assert mla.rope is not None
    assert mla.rope.yarn is not None
    assert mla.rope.yarn.original_context == 4096
    assert mla.rope.theta == 50000.0
    assert mla.softmax_scale == pytest.approx(0.14468, abs=1e-5)


def test_glm_rotates_without_yarn() -> None:
    mla = read_spec(GLM_FLASH).layers[1].mixer
    assert isinstance(mla, MlaSpec)
    assert mla.rope is not None
    assert mla.rope.yarn is None
    assert mla.rope.theta == 1e6
    assert mla.softmax_scale == pytest.approx(1 / 16)


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_names_are_unique_on_both_sides(config: dict[str, Any]) -> None:
    spec = read_spec(config)
    tensors = list(family_of(spec).tensors(spec))
    assert max(Counter(t.name for t in tensors).values()) == 1
    assert max(Counter(t.stored for t in tensors).values()) == 1


def test_kimi_models_stop_on_all_three_end_tokens() -> None:
    assert set(read_spec(KIMI_LINEAR).stop_ids) == {163585, 163586, 163593}
    assert set(read_spec(K25_INT4).stop_ids) == {163585, 163586, 163593}
    assert read_spec(DEEPSEEK_V3).stop_ids == (1,)


def test_stop_ids_join_config_and_generation_config_without_repeats() -> None:
    assert read_spec(GLM_FLASH, {"eos_token_id": [154827, 7]}).stop_ids == (154820, 154827, 154829, 7)
    assert read_spec({**DEEPSEEK_V3, "eos_token_id": None}, {}).stop_ids == ()


def test_what_transformers_5_writes_for_a_golden_model_reads_as_the_same_spec(golden: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = json.loads((golden / "config.json").read_text())
    rewritten = transformers.AutoConfig.from_pretrained(golden).to_dict()
    # transformers fills in a beginning-of-sequence id where a model has none.
    rewritten["bos_token_id"] = config.get("bos_token_id")
    if golden.name.startswith("kimi_linear"):
        assert "layer_types" in rewritten
        del rewritten["linear_attn_config"]
    elif golden.name == "glm4_moe_lite":
        assert "rope_parameters" in rewritten
    assert read_spec(rewritten) == read_spec(config)


def test_a_model_type_stands_in_for_missing_architectures() -> None:
    for name, config in PUBLISHED.items():
        bare = {k: v for k, v in config.items() if k != "architectures"}
        assert read_spec(bare) == read_spec(config), name


def test_an_unknown_architecture_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"MambaForCausalLM.*KimiLinearForCausalLM.*Glm4MoeLiteForCausalLM"):
        read_spec({"architectures": ["MambaForCausalLM"]})
    with pytest.raises(UnsupportedError, match="KimiK3ForConditionalGeneration"):
        read_spec({"architectures": ["KimiK3ForConditionalGeneration"], "text_config": KIMI_LINEAR})
    with pytest.raises(UnsupportedError, match="model_type None"):
        read_spec({})


REQUIRED = {
    "kimi_linear": [
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps",
        "model_max_length", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "moe_intermediate_size", "first_k_dense_replace",
    ],
    "deepseek": ["rope_theta", "n_routed_experts", "num_experts_per_tok", "max_position_embeddings", "rms_norm_eps"],
    "glm": ["rope_theta", "n_routed_experts", "num_experts_per_tok", "max_position_embeddings", "vocab_size"],
}  # fmt: skip


@pytest.mark.parametrize(("model", "key"), [(m, k) for m, keys in REQUIRED.items() for k in keys])
def test_a_missing_key_is_named(model: str, key: str) -> None:
    config = {k: v for k, v in PUBLISHED[model].items() if k != key}
    with pytest.raises(CheckpointError, match=rf"'{key}'"):
        read_spec(config)


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("deepseek", "attention_bias", True),
        ("deepseek", "hidden_act", "gelu"),
        ("deepseek", "scoring_func", "softmax"),
        ("deepseek", "topk_method", "greedy"),
        ("deepseek", "rope_interleave", False),
        ("deepseek", "dtype", "int8"),
        ("deepseek", "index_topk", 2048),
        ("glm", "partial_rotary_factor", 0.5),
        ("glm", "swiglu_limit", 10.0),
        ("glm", "hc_mult", 4),
        ("kimi_linear", "moe_router_activation_func", "softmax"),
        ("kimi_linear", "mla_use_nope", False),
        ("kimi_linear", "mla_use_output_gate", True),
        ("kimi_linear", "attn_res_block_size", 12),
        ("kimi_linear", "gate_lower_bound", -5.0),
        ("kimi_linear", "routed_expert_hidden_size", 3584),
        ("kimi_linear", "hidden_act", "situ"),
    ],
)
def test_an_option_that_changes_the_arithmetic_is_refused_by_name(model: str, key: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=key):
        read_spec({**PUBLISHED[model], key: value})


@pytest.mark.parametrize("key", ["gate_lower_bound", "use_full_rank_gate"])
def test_k3_options_inside_linear_attn_config_are_refused(key: str) -> None:
    config = copy.deepcopy(KIMI_LINEAR)
    config["linear_attn_config"][key] = -5.0 if key == "gate_lower_bound" else True
    with pytest.raises(UnsupportedError, match=key):
        read_spec(config)


def test_options_that_are_switched_off_are_accepted() -> None:
    off = {"swiglu_limit": None, "attn_res_block_size": 0, "mla_use_output_gate": False, "attention_bias": False}
    assert read_spec({**KIMI_LINEAR, **off}) == read_spec(KIMI_LINEAR)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_an_unknown_rope_scaling_is_refused(kind: str, key: str) -> None:
    with pytest.raises(UnsupportedError, match=f"rope_scaling.*{kind}"):
        read_spec({**GLM_FLASH, "rope_scaling": {key: kind, "factor": 2.0}})


def test_yarn_without_its_numbers_names_the_missing_one() -> None:
    with pytest.raises(CheckpointError, match="original_max_position_embeddings"):
        read_spec({**K2_TEXT, "rope_scaling": {"type": "yarn", "factor": 4.0}})


@pytest.mark.parametrize(
    ("kda", "full"),
    [([1, 2, 3], [4, 5]), ([0, 1, 2], [3]), ([1, 2, 3], [3]), ([1, 2], [4]), ([1, 2, 3, 3], [4]), ([], [])],
    ids=["too many", "counted from 0", "twice", "gap", "repeated", "empty"],
)
def test_layer_lists_that_do_not_name_each_layer_once_are_refused(kda: list[int], full: list[int]) -> None:
    lists = {**KIMI_LINEAR["linear_attn_config"], "kda_layers": kda, "full_attn_layers": full}
    with pytest.raises(CheckpointError, match="kda_layers and full_attn_layers"):
        read_spec({**KIMI_LINEAR, "num_hidden_layers": 4, "linear_attn_config": lists})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"n_group": 7}, "n_group"),
        ({"topk_group": 9}, "topk_group"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": "7168"}, "hidden_size"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"n_routed_experts": 10**12}, "n_routed_experts"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_values_that_contradict_each_other_or_their_type_are_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        read_spec({**DEEPSEEK_V3, **change})


def test_a_tied_model_has_no_head_of_its_own() -> None:
    spec = read_spec({**GLM_FLASH, "tie_word_embeddings": True})
    assert spec.tied_embedding
    assert "lm_head" not in {t.name for t in family_of(spec).tensors(spec)}


def test_a_model_without_shared_experts_asks_for_none() -> None:
    spec = read_spec({**DEEPSEEK_V3, "n_shared_experts": 0})
    assert not [t for t in family_of(spec).tensors(spec) if ".shared." in t.name]


def test_moe_every_second_layer_after_the_dense_ones() -> None:
    spec = read_spec({**DEEPSEEK_V3, "num_hidden_layers": 7, "moe_layer_freq": 2})
    assert [isinstance(layer.ffn, MoeSpec) for layer in spec.layers] == [False, False, False, False, True, False, True]


def test_prediction_layers_rope_tables_and_vision_are_skipped_and_nothing_else() -> None:
    deepseek, k25, glm = read_spec(DEEPSEEK_V3), read_spec(K25_INT4), read_spec(GLM_FLASH)
    skipped = [
        (deepseek, "model.layers.61.eh_proj.weight"),
        (deepseek, "model.layers.3.self_attn.rotary_emb.inv_freq"),
        (k25, "vision_tower.patch_embed.proj.weight"),
        (k25, "mm_projector.proj.0.weight"),
        (k25, "language_model.model.layers.61.norm.weight"),
        (glm, "model.layers.47.shared_head.head.weight"),
    ]
    kept = [
        (deepseek, "model.layers.60.input_layernorm.weight"),
        (deepseek, "vision_tower.patch_embed.proj.weight"),
        (k25, "model.layers.61.norm.weight"),
        (glm, "model.layers.46.mlp.gate.weight"),
        (glm, "model.norm.weight"),
    ]
    assert all(family_of(spec).skips(name, spec) for spec, name in skipped)
    assert not any(family_of(spec).skips(name, spec) for spec, name in kept)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(PUBLISHED)), st.data())
def test_any_value_under_any_key_gives_a_spec_or_a_typed_error(model: str, data: st.DataObject) -> None:
    config = copy.deepcopy(PUBLISHED[model])
    for level in (config, config.get("text_config"), config.get("linear_attn_config"), config.get("rope_scaling")):
        if level and data.draw(st.booleans()):
            level[data.draw(st.sampled_from(sorted(level)))] = data.draw(JSON)
    try:
        spec = read_spec(config)
    except (CheckpointError, UnsupportedError):
        return
    assert math.isfinite(spec.norm_eps)
    assert len({tensor.name for tensor in itertools.islice(family_of(spec).tensors(spec), 100)}) == 100


def test_errors_are_perilune_errors_with_a_fix() -> None:
    with pytest.raises(PeriluneError) as caught:
        read_spec({**GLM_FLASH, "hidden_act": "gelu"})
    assert caught.value.what
    assert caught.value.why
    assert caught.value.fix


def test_the_readers_import_without_torch() -> None:
    code = "import sys, perilune.models.hub, perilune.models.estimate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
