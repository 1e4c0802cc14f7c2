from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perilune.engine.config import EngineConfig, plan_engine
from perilune.errors import CheckpointError, ConfigError, PeriluneError
from perilune.models.checkpoint import Checkpoint
from perilune.models.config import read_config
from perilune.models.quantised import INT8_COST
from perilune.models.share import Share
from perilune.plan.device import Machine
from perilune.plan.folder import plan_folder
from perilune.plan.plan import Plan
from perilune.units import GIB


def planned(path: Path, **settings: Any) -> Plan:
    return plan_folder(path, Machine(64 * GIB, "test"), **settings)


NAMES = ("deepseek_v3", "glm4_moe_lite", "kimi_k25_mxfp4", "kimi_linear", "kimi_linear_w4a16")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_plan_is_what_the_engine_derives(golden: Path, name: str, dtype: str) -> None:
    plan = planned(golden / name, dtype=dtype, context=300, concurrency=3)
    engine = plan_engine(
        EngineConfig(str(name), dtype=dtype, max_context=300, max_running=3), read_config(golden / name).spec
    )
    assert plan.cache_bytes == engine.cache.total_bytes
    assert plan.snapshot_slots == engine.cache.snapshots
    assert (plan.pages, plan.slots, plan.dtype) == (engine.cache.pages, engine.cache.slots, engine.dtype)


def test_the_defaults_are_the_engines(golden: Path) -> None:
    plan = planned(golden / "kimi_linear")
    engine = plan_engine(EngineConfig("kimi_linear"), read_config(golden / "kimi_linear").spec)
    assert (plan.context, plan.concurrency) == (engine.max_context, engine.cache.slots)
    assert plan.cache_bytes == engine.cache.total_bytes
    assert planned(golden / "deepseek_v3").context == 2048


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_counted_from_the_tensors_when_they_are_here(golden: Path, name: str) -> None:
    plan, checkpoint = planned(golden / name), Checkpoint.open(golden / name)
    assert plan.weights_bytes == checkpoint.weight_bytes(plan.dtype, leave_embedding=True)
    assert "tensors" in plan.because["weights_bytes"]


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_that_stays_in_its_file_is_named_and_not_counted(golden: Path, name: str) -> None:
    plan, held = planned(golden / name), planned(golden / name, hold_embedding=True)
    table = plan.file_bytes
    assert table == held.weights_bytes - plan.weights_bytes == held.total_bytes - plan.total_bytes > 0
    assert "file" in plan.because["file_bytes"]
    assert (held.file_bytes, held.roofline) == (0, plan.roofline)
    assert planned(golden / name / "config.json").file_bytes == table


def test_a_gpu_and_a_head_that_is_the_embedding_hold_it(golden: Path, tmp_path: Path) -> None:
    gpu = plan_folder(golden / "kimi_linear", Machine(64 * GIB, "test", gpu=True))
    assert gpu.weights_bytes == Checkpoint.open(golden / "kimi_linear").weight_bytes(gpu.dtype)
    config = json.loads((golden / "kimi_linear" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tied = planned(tmp_path / "config.json")
    assert (gpu.file_bytes, tied.file_bytes) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_8_bits_are_counted_as_the_loader_holds_them(golden: Path, name: str) -> None:
    plan, rounded = planned(golden / name), planned(golden / name, weight_bits="8")
    checkpoint = Checkpoint.open(golden / name)
    assert rounded.weights_bytes == checkpoint.weight_bytes(plan.dtype, 8, leave_embedding=True) < plan.weights_bytes
    assert INT8_COST in rounded.because["weights_bytes"]
    assert rounded.roofline.weight_bytes_per_step < plan.roofline.weight_bytes_per_step
    with pytest.raises(ConfigError, match="weight_bits '4'"):
        planned(golden / name, weight_bits="4")


@pytest.mark.parametrize("name", NAMES)
def test_a_config_alone_gives_the_same_cache_and_an_estimate_of_the_weights(golden: Path, name: str) -> None:
    whole, alone = planned(golden / name), planned(golden / name / "config.json")
    assert alone.cache_bytes == whole.cache_bytes
    assert alone.weights_bytes == pytest.approx(whole.weights_bytes, rel=0.02)
    assert "only the config" in alone.because["weights_bytes"]


def test_shards_that_are_not_here_yet_are_counted(golden: Path, tmp_path: Path) -> None:
    for file in (golden / "kimi_linear").glob("*.json"):
        shutil.copy(file, tmp_path)
    assert "2 of 2 shards" in planned(tmp_path).because["weights_bytes"]


def test_a_broken_shard_is_an_error_now_not_after_loading(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "kimi_linear", tmp_path, dirs_exist_ok=True)
    shard = next(tmp_path.glob("model-*.safetensors"))
    shard.chmod(0o644)
    shard.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=shard.name):
        planned(tmp_path)


def test_a_folder_without_config_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(PeriluneError, match=r"config\.json"):
        planned(tmp_path)


def test_full_size_weights_are_those_of_the_facts(configs: Path) -> None:
    for name, size, rel in (
        ("kimi-linear-48b", 91.50 * GIB, 1e-3),
        ("kimi-k2.5", 594e9, 5e-3),
        ("glm-4.7-flash", 59.9e9, 1e-3),
    ):
        plan = planned(configs / name)
        assert plan.weights_bytes + plan.file_bytes == pytest.approx(size, rel=rel)
    assert planned(configs / "kimi-linear-48b").file_bytes == 163_840 * 2304 * 2


@pytest.mark.parametrize(("name", "tp", "ep"), [("kimi_linear", 2, False), ("deepseek_v3", 4, True)])
def test_a_rank_is_planned_as_the_engine_allocates_it(golden: Path, name: str, tp: int, ep: bool) -> None:
    plan, whole = planned(golden / name, tp=tp, ep=ep), planned(golden / name)
    checkpoint = Checkpoint.open(golden / name)
    shares = [Share(tp, rank, ep) for rank in range(tp)]
    held = [checkpoint.weight_bytes(plan.dtype, share=share, leave_embedding=True) for share in shares]
    assert plan.rank_weights_bytes == tuple(held)
    assert plan.file_bytes == checkpoint.embedding_bytes(shares[held.index(max(held))])
    assert plan.weights_bytes == max(plan.rank_weights_bytes) < whole.weights_bytes
    engine = plan_engine(EngineConfig(name, tp=tp, ep=ep), checkpoint.spec)
    assert plan.cache_bytes == engine.cache.total_bytes
    assert (plan.tp, plan.memory_bytes) == (tp, whole.memory_bytes // tp)
    assert "experts shared" in plan.because["weights_bytes"]
    assert plan.roofline.read_bytes_per_token < whole.roofline.read_bytes_per_token


def test_ranks_on_gpus_have_a_memory_each_and_rates_of_their_own(golden: Path) -> None:
    gpu = Machine(64 * GIB, "test", bandwidth=1e9, compute=1e12, one_memory=False)
    one, two = (plan_folder(golden / "kimi_linear", gpu, tp=tp) for tp in (1, 2))
    assert two.memory_bytes == one.memory_bytes
    assert one.roofline.decode_tokens_per_second
    assert two.roofline.decode_tokens_per_second
    assert one.roofline.decode_tokens_per_second < two.roofline.decode_tokens_per_second
    shared = plan_folder(golden / "kimi_linear", replace(gpu, one_memory=True), tp=2)
    assert shared.roofline.decode_tokens_per_second == pytest.approx(two.roofline.decode_tokens_per_second / 2)


def test_a_rank_is_estimated_from_a_config_alone(golden: Path) -> None:
    config = golden / "kimi_linear" / "config.json"
    assert planned(config, tp=2).rank_weights_bytes == planned(golden / "kimi_linear", tp=2).rank_weights_bytes


def test_heads_that_ranks_cannot_share_are_refused(golden: Path) -> None:
    with pytest.raises(ConfigError, match="2 ranks cannot share the 5 attention heads"):
        planned(golden / "glm4_moe_lite", tp=2)
