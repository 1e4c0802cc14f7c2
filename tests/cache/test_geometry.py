from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.cache.geometry import ALIGNMENT, PAGE_TOKENS, CacheGeometry, pages_for
from perilune.errors import ConfigError
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, ModelSpec

KDA = KdaSpec(heads=32, head_dim=128)
MLA = MlaSpec(heads=32, nope_dim=128, rope_dim=64, v_dim=128, latent_rank=512)


def spec_of(*mixers: KdaSpec | MlaSpec) -> ModelSpec:
    return ModelSpec(
        family="kimi_linear",
        architecture="KimiLinearForCausalLM",
        layers=tuple(LayerSpec(mixer, DenseSpec(8)) for mixer in mixers),
        vocab=16,
        hidden=8,
        norm_eps=1e-5,
        max_context=4096,
        dtype="bfloat16",
        stop_ids=(1,),
    )


KIMI_LINEAR = spec_of(*(MLA if n in (4, 8, 12, 16, 20, 24, 27) else KDA for n in range(1, 28)))


def test_kimi_linear_bytes_are_those_of_the_facts() -> None:
    geometry = CacheGeometry.of(KIMI_LINEAR, "bfloat16")
    assert geometry.bytes_per_token == 8_064
    assert geometry.page_bytes == 516_096
    assert geometry.state_bytes == 41_943_040
    assert geometry.conv_bytes == 1_474_560
    assert geometry.slot_bytes == 43_417_600
    assert geometry.padding_bytes == 0


def test_fp32_doubles_latents_and_windows_but_not_states() -> None:
    half, full = CacheGeometry.of(KIMI_LINEAR, "bfloat16"), CacheGeometry.of(KIMI_LINEAR, "float32")
    assert full.bytes_per_token == 2 * half.bytes_per_token
    assert full.conv_bytes == 2 * half.conv_bytes
    assert full.state_bytes == half.state_bytes


def test_two_ranks_halve_the_slot_and_keep_the_page() -> None:
    whole, share = CacheGeometry.of(KIMI_LINEAR, "bfloat16"), CacheGeometry.of(KIMI_LINEAR, "bfloat16", tp=2)
    assert share.slot_bytes * 2 == whole.slot_bytes
    assert share.page_bytes == whole.page_bytes
    assert share.states[0].state_shape == (16, 128, 128)


def test_ranks_that_do_not_divide_the_heads_are_refused_by_layer() -> None:
    with pytest.raises(ConfigError, match="32 KDA heads of layer 0"):
        CacheGeometry.of(KIMI_LINEAR, "bfloat16", tp=3)


def test_an_unknown_cache_dtype_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        CacheGeometry.of(KIMI_LINEAR, "bfloat61")


def test_zero_ranks_are_refused() -> None:
    with pytest.raises(ConfigError):
        CacheGeometry.of(KIMI_LINEAR, "bfloat16", tp=0)


def test_blocks_carry_the_layer_index_of_the_model() -> None:
    geometry = CacheGeometry.of(KIMI_LINEAR, "bfloat16")
    assert tuple(block.layer for block in geometry.latents) == (3, 7, 11, 15, 19, 23, 26) == KIMI_LINEAR.mla_layers
    assert tuple(block.layer for block in geometry.states) == KIMI_LINEAR.kda_layers


def test_without_kda_a_slot_costs_nothing() -> None:
    geometry = CacheGeometry.of(spec_of(MLA, MLA), "bfloat16")
    assert (geometry.slot_bytes, geometry.states) == (0, ())
    assert geometry.sequence_bytes(65) == 2 * geometry.page_bytes


def test_without_mla_a_page_costs_nothing() -> None:
    geometry = CacheGeometry.of(spec_of(KDA, KDA), "bfloat16")
    assert (geometry.page_bytes, geometry.latents) == (0, ())
    assert geometry.sequence_bytes(10**6) == geometry.slot_bytes > 0


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_pages_for_counts_started_pages(tokens: int, pages: int) -> None:
    assert pages_for(tokens) == pages


@given(st.integers(0, 10**9))
def test_pages_cover_the_tokens_and_waste_less_than_one(tokens: int) -> None:
    assert 0 <= pages_for(tokens) * PAGE_TOKENS - tokens < PAGE_TOKENS


mixers = st.one_of(
    st.builds(KdaSpec, heads=st.integers(1, 5), head_dim=st.integers(1, 20), taps=st.integers(2, 5)),
    st.builds(
        MlaSpec,
        heads=st.integers(1, 4),
        nope_dim=st.just(8),
        rope_dim=st.integers(0, 9),
        v_dim=st.just(8),
        latent_rank=st.integers(1, 40),
    ),
)


@given(st.lists(mixers, min_size=1, max_size=6), st.sampled_from(["bfloat16", "float16", "float32"]))
def test_blocks_are_aligned_ordered_and_never_overlap(layers: list[KdaSpec | MlaSpec], dtype: str) -> None:
    geometry = CacheGeometry.of(spec_of(*layers), dtype)
    spans = [(b.state_offset, b.state_bytes) for b in geometry.states]
    spans += [(b.conv_offset, b.conv_bytes) for b in geometry.states]
    end = 0
    for offset, size in spans:
        assert offset % ALIGNMENT == 0
        assert end <= offset < end + ALIGNMENT
        end = offset + size
    assert geometry.slot_bytes % ALIGNMENT == 0
    assert end <= geometry.slot_bytes < end + ALIGNMENT
    assert 0 <= geometry.padding_bytes < ALIGNMENT * max(1, len(spans))


def test_geometry_is_frozen() -> None:
    geometry = CacheGeometry.of(KIMI_LINEAR, "bfloat16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        geometry.slot_bytes = 1  # type: ignore[misc]  # the point of the test


def test_sizes_are_known_without_torch() -> None:
    code = "import sys, perilune.cache.manager; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
