"""A slice is an ordinary checkpoint with the model's shapes, and the same bits whoever makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peers.slices import GROUP, MODELS, ensure_slice, slice_config, slice_spec
from safetensors.torch import load_file

from perilune import LLM, SamplingParams
from perilune.models.checkpoint import Checkpoint
from perilune.models.families import read_spec
from perilune.models.loader import load_weights
from perilune.models.spec import KdaSpec
from perilune.ops.linear.formats import Int4Weight


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for shard in folder.glob("*.safetensors") for name, value in load_file(shard).items()}


@pytest.mark.parametrize("name", MODELS)
def test_real_slices_keep_every_shape_and_cut_layers_and_vocabulary(name: str) -> None:
    spec = read_spec(slice_config(MODELS[name], MODELS[name].layers))
    assert (len(spec.layers), spec.vocab) == (MODELS[name].layers, 24_576)
    assert spec.hidden == {"kimi": 2304, "glm": 2048}[name]
    assert spec.layers[-1].ffn.width == {"kimi": 1024, "glm": 1536}[name]


def test_four_layers_of_kimi_linear_are_three_kda_and_one_mla() -> None:
    layers = read_spec(slice_config(MODELS["kimi"], 4)).layers
    assert [isinstance(layer.mixer, KdaSpec) for layer in layers] == [True, True, True, False]


def test_perilune_loads_a_slice_and_generates(tiny_slice: Path) -> None:
    Checkpoint.open(tiny_slice).check()
    with LLM(str(tiny_slice), max_context=128, max_running=1, kernels="reference") as llm:
        [answer] = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
        logits = llm.logits(list(range(70)))
    assert len(answer.token_ids) == 6
    assert torch.isfinite(logits).all()
    assert 0.1 < float(logits.std()) < 10


def test_all_linear_modules_are_int4_with_factors_that_fp16_holds(tiny_slice: Path) -> None:
    matrices = [w for w in load_weights(Checkpoint.open(tiny_slice), torch.bfloat16).values() if hasattr(w, "shape")]
    packed = [w for w in matrices if isinstance(w, Int4Weight)]
    assert packed
    assert not any(type(w).__name__ == "DenseWeight" for w in matrices)
    for weight in packed:
        assert weight.group == GROUP
        assert torch.equal(weight.scale.half().float(), weight.scale.float())


def test_outputs_of_a_matrix_have_the_variance_of_its_inputs(tiny_slice: Path) -> None:
    weight = load_weights(Checkpoint.open(tiny_slice), torch.bfloat16)["lm_head"]
    assert isinstance(weight, Int4Weight)
    out = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) @ weight.dequantise(torch.float32).T
    assert 0.8 < float(out.std()) < 1.2


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(tiny_slice: Path, tmp_path: Path) -> None:
    config = slice_config_of(tiny_slice)
    again, other = (ensure_slice(tmp_path / str(seed), config, seed) for seed in (0, 1))
    first = tensors(tiny_slice)
    assert all(torch.equal(first[name], value) for name, value in tensors(again).items())
    assert any(not torch.equal(first[name], value) for name, value in tensors(other).items())


def test_a_slice_is_made_once_and_again_when_the_config_changes(tiny_slice: Path, tmp_path: Path) -> None:
    config = slice_config_of(tiny_slice)
    folder = ensure_slice(tmp_path / "s", config)
    made = (folder / "config.json").stat().st_mtime_ns
    assert (ensure_slice(folder, config) / "config.json").stat().st_mtime_ns == made
    ensure_slice(folder, config | {"routed_scaling_factor": 1.0})
    assert slice_spec(folder).layers[-1].ffn.scaling == 1.0


def slice_config_of(folder: Path) -> dict:
    return Checkpoint.open(folder).config
