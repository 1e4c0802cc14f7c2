from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.cache.arena import CacheArenas
from perilune.cache.budget import plan_cache
from perilune.cache.geometry import CacheGeometry
from perilune.errors import ConfigError
from perilune.models.config import read_config
from perilune.models.spec import ModelSpec
from perilune.plan.device import Machine
from perilune.plan.plan import Plan, plan_model
from perilune.units import GIB

TESTS = Path(__file__).parents[1]
KIMI_LINEAR = read_config(TESTS / "data" / "kimi-linear-48b").spec
GLM = read_config(TESTS / "data" / "glm-4.7-flash").spec
K25 = read_config(TESTS / "data" / "kimi-k2.5").spec
KDA_ONLY = dataclasses.replace(KIMI_LINEAR, layers=KIMI_LINEAR.layers[:3])


def plan(spec: ModelSpec = KIMI_LINEAR, *, context: int = 8192, concurrency: int = 4, memory: int = 64 * GIB) -> Plan:
    return plan_model(spec, Machine(memory), context=context, concurrency=concurrency, weights_bytes=30 * GIB)


@pytest.mark.parametrize(("spec", "per_token"), [(KIMI_LINEAR, 8_064), (GLM, 54_144), (K25, 70_272)])
def test_cache_bytes_per_token_are_those_of_the_facts(spec: ModelSpec, per_token: int) -> None:
    assert plan(spec).cache_bytes_per_token == per_token


def test_kimi_linear_state_is_that_of_the_facts() -> None:
    planned = plan()
    assert planned.state_bytes_per_sequence == 41_943_040 + 1_474_560 == planned.slot_bytes
    assert (planned.layers, planned.kda_layers, planned.mla_layers) == (27, 20, 7)


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe_lite", "kimi_k25_mxfp4", "kimi_linear"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_cache_bytes_are_what_the_arenas_then_allocate(golden: Path, name: str, dtype: str) -> None:
    spec = read_config(golden / name).spec
    planned = plan_model(spec, Machine(GIB), context=130, concurrency=3, weights_bytes=1, dtype=dtype)
    geometry = CacheGeometry.of(spec, dtype)
    assert CacheArenas(geometry, plan_cache(geometry, 130, 3, snapshots=None)).allocated_bytes == planned.cache_bytes
    rows = planned.slots + planned.snapshot_slots
    assert planned.pages * planned.page_bytes + rows * planned.slot_bytes == planned.cache_bytes


def test_the_total_is_the_sum_of_its_parts() -> None:
    planned = plan()
    assert planned.total_bytes == planned.weights_bytes + planned.cache_bytes + planned.workspace_bytes
    assert planned.cache_bytes == 4 * (128 * 516_096 + 3 * 43_417_600)


def test_without_a_prefix_cache_only_running_sequences_take_memory() -> None:
    kept, bare = (
        plan(),
        plan_model(
            KIMI_LINEAR, Machine(64 * GIB), context=8192, concurrency=4, weights_bytes=30 * GIB, prefix_cache=False
        ),
    )
    assert bare.cache_bytes == 4 * (128 * 516_096 + 43_417_600)
    assert bare.snapshot_slots == 0
    assert kept.total_bytes - bare.total_bytes == kept.snapshot_slots * kept.slot_bytes
    assert plan(GLM).cache_bytes == 4 * 128 * 64 * 54_144  # no KDA layer, no snapshot


def test_snapshots_are_priced() -> None:
    machine = Machine(64 * GIB, bandwidth=80e9, compute=1e12)
    planned = plan_model(KIMI_LINEAR, machine, context=8192, concurrency=4, weights_bytes=30 * GIB)
    assert planned.snapshot_break_even_tokens == -(-43_417_600 // 8_064)
    more = planned.max_snapshots - planned.snapshot_slots
    assert planned.total_bytes + more * planned.slot_bytes <= planned.memory_bytes
    assert planned.total_bytes + (more + 1) * planned.slot_bytes > planned.memory_bytes
    seconds, rate = 2 * 43_417_600 / 80e9, planned.roofline.prefill_tokens_per_second
    assert rate is not None
    assert planned.snapshot_copy_tokens == -int(-seconds * rate // 1)
    assert plan().snapshot_copy_tokens is None
    assert plan(GLM).snapshot_break_even_tokens is None
    assert plan(KDA_ONLY).snapshot_break_even_tokens is None
    assert plan(memory=GIB).max_snapshots == 0


def test_memory_of_exactly_the_total_fits_and_one_byte_less_does_not() -> None:
    need = plan().total_bytes
    assert plan(memory=need).fits
    assert not plan(memory=need - 1).fits


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([KIMI_LINEAR, GLM, K25, KDA_ONLY]),
    st.integers(1, 202_752),
    st.integers(1, 300),
    st.integers(20 * GIB, 120 * GIB),
)
def test_fits_agrees_with_both_limits(spec: ModelSpec, context: int, concurrency: int, memory: int) -> None:
    planned = plan(spec, context=context, concurrency=concurrency, memory=memory)
    assert planned.fits == (context <= planned.max_context)
    assert planned.fits == (concurrency <= planned.max_concurrency)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([KIMI_LINEAR, GLM, KDA_ONLY]),
    st.integers(1, 202_752),
    st.integers(1, 50),
    st.integers(31 * GIB, 90 * GIB),
)
def test_the_limits_themselves_fit_and_one_more_does_not(
    spec: ModelSpec, context: int, concurrency: int, memory: int
) -> None:
    planned = plan(spec, context=context, concurrency=concurrency, memory=memory)
    if planned.max_context:
        assert plan(spec, context=planned.max_context, concurrency=concurrency, memory=memory).fits
        if planned.max_context < spec.max_context:
            assert not plan(spec, context=planned.max_context + 1, concurrency=concurrency, memory=memory).fits
    if planned.max_concurrency:
        assert plan(spec, context=context, concurrency=planned.max_concurrency, memory=memory).fits
    assert not plan(spec, context=context, concurrency=planned.max_concurrency + 1, memory=memory).fits


def test_the_largest_context_never_exceeds_the_models_own() -> None:
    assert plan(concurrency=1, memory=10_000 * GIB).max_context == KIMI_LINEAR.max_context
    assert plan(KDA_ONLY, concurrency=1).max_context == KDA_ONLY.max_context


def test_a_plan_that_does_not_fit_says_what_would() -> None:
    planned = plan(context=1_000_000, concurrency=8)
    assert not planned.fits
    assert f"context {planned.max_context}" in planned.because["fits"]
    assert f"concurrency {planned.max_concurrency}" in planned.because["fits"]
    assert plan(context=planned.max_context, concurrency=8).fits


def test_weights_that_exceed_the_memory_are_named() -> None:
    planned = plan(memory=GIB)
    assert (planned.fits, planned.max_context, planned.max_concurrency) == (False, 0, 0)
    assert "weights" in planned.because["fits"]


def test_when_only_both_together_help_both_are_named() -> None:
    tight = plan(context=64, concurrency=1)
    planned = plan(context=1_000_000, concurrency=100, memory=tight.total_bytes)
    assert (planned.max_context, planned.max_concurrency) == (0, 0)
    assert "both" in planned.because["fits"]


def test_a_context_beyond_the_models_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(ConfigError, match="202752"):
        plan(GLM, context=202_753)
    assert plan(GLM, context=202_752).context == 202_752


@pytest.mark.parametrize(("context", "concurrency"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(context: int, concurrency: int) -> None:
    with pytest.raises(ConfigError):
        plan(context=context, concurrency=concurrency)


def test_an_unknown_dtype_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="float32"):
        plan_model(KIMI_LINEAR, Machine(1), context=1, concurrency=1, weights_bytes=1, dtype="float23")


def test_every_decisive_number_has_a_reason() -> None:
    fields = {field.name for field in dataclasses.fields(Plan)}
    because = plan().because
    assert because.keys() <= fields
    numbers = {
        "weights_bytes", "cache_bytes_per_token", "state_bytes_per_sequence", "cache_bytes", "workspace_bytes",
        "total_bytes", "memory_bytes", "max_context", "max_concurrency", "fits", "pages", "slots", "dtype",
    }  # fmt: skip
    assert numbers <= because.keys()
    assert all(because.values())
