"""Settings: unknown ones name the nearest, wrong ones say why, derived ones carry their reason."""

from __future__ import annotations

from typing import Any

import pytest

from perilune.builtin import model_path
from perilune.engine.config import DEFAULT_CONTEXT, EngineConfig, plan_engine
from perilune.errors import ConfigError
from perilune.models.config import read_config
from perilune.models.quantised import INT8_COST
from perilune.models.spec import ModelSpec


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return read_config(model_path()).spec


@pytest.mark.parametrize(
    ("given", "meant"),
    [("max_contxt", "max_context"), ("maxrunning", "max_running"), ("dtyp", "dtype"), ("thread", "threads")],
)
def test_an_unknown_setting_names_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{given}'.*'{meant}'"):
        EngineConfig.of("m", **{given: 1})


def test_a_setting_like_no_other_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"Valid: .*max_context.*threads"):
        EngineConfig.of("m", zzz=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "float64"), ("dtype", "fp32"), ("device", "rocm"), ("max_context", 0), ("max_context", "8192"),
        ("max_running", 0), ("max_running", 1.5), ("max_running", True), ("cache_bytes", -1), ("prefill_chunk", 0),
        ("prefill_chunk", 100), ("prefill_chunk", "512"), ("prefill_chunk", 64.0), ("max_waiting", 0), ("threads", 0),
        ("weight_bits", "4"), ("weight_bits", 8), ("device", "cpu:0"), ("device", "cuda:x"), ("gpu_seconds", 0),
        ("eager", 1), ("compile_seconds", 0), ("gpu_marks", 0),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        EngineConfig.of("m", **{name: value})


def test_defaults_are_the_checkpoints_dtype_and_a_bounded_context(spec: ModelSpec) -> None:
    plan = plan_engine(EngineConfig("m"), spec)
    assert plan.dtype == spec.dtype
    assert plan.max_context == min(spec.max_context, DEFAULT_CONTEXT)
    because = " | ".join(plan.because)
    assert "the checkpoint's own" in because
    assert f"context {plan.max_context}: " in because


def test_weights_in_8_bits_are_said_with_what_they_cost(spec: ModelSpec) -> None:
    assert plan_engine(EngineConfig("m"), spec).weight_bits == 16
    plan = plan_engine(EngineConfig("m", weight_bits="8"), spec)
    assert plan.weight_bits == 8
    [said] = [reason for reason in plan.because if reason.startswith("weights int8: as set")]
    assert INT8_COST in said


def test_what_is_set_says_so(spec: ModelSpec) -> None:
    plan = plan_engine(EngineConfig("m", dtype="float32", max_context=100, max_running=3), spec)
    assert plan.because[:2] == ("dtype float32: as set", "context 100: as set")
    assert (plan.cache.slots, plan.cache.pages) == (3, 6)


def test_a_budget_that_cuts_the_context_is_said(spec: ModelSpec) -> None:
    roomy = plan_engine(EngineConfig("m", max_context=1000, max_running=1), spec).cache
    budget = roomy.slot_bytes + 3 * roomy.page_bytes
    plan = plan_engine(EngineConfig("m", max_context=1000, max_running=1, cache_bytes=budget), spec)
    assert plan.max_context == 192
    assert plan.cache.total_bytes <= budget
    assert any("192 tokens, not 1000" in reason for reason in plan.because)


def test_more_context_than_the_model_has_is_refused_with_the_limit(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match=str(spec.max_context)):
        plan_engine(EngineConfig("m", max_context=spec.max_context + 1), spec)
    assert plan_engine(EngineConfig("m", max_context=spec.max_context, max_running=1), spec).max_context
