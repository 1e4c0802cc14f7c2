from __future__ import annotations

from pathlib import Path

import pytest

from perilune.cache.geometry import CacheGeometry
from perilune.models.config import read_config
from perilune.models.spec import ModelSpec
from perilune.plan.roofline import Roofline, roofline

DATA = Path(__file__).parents[1] / "data"
KIMI_LINEAR = read_config(DATA / "kimi-linear-48b").spec
GLM = read_config(DATA / "glm-4.7-flash").spec
K25 = read_config(DATA / "kimi-k2.5").spec


def ceiling(spec: ModelSpec, weights: float, concurrency: int = 1, depth: int = 0, **machine: float) -> Roofline:
    geometry = CacheGeometry.of(spec, "bfloat16")
    return roofline(spec, geometry, int(weights), depth=depth, concurrency=concurrency, **machine)


@pytest.mark.parametrize(
    ("spec", "weights", "read"),
    [
        (KIMI_LINEAR, 98.245e9, 6.2e9),
        (KIMI_LINEAR, 30.5e9, 4.1e9),
        (GLM, 59.887e9, 7.2e9),
        (GLM, 19.9e9, 4.7e9),
        (K25, 2052.8e9, 63e9),
        (K25, 594e9, 33e9),
    ],
)
def test_weights_read_per_token_are_those_of_the_facts(spec: ModelSpec, weights: float, read: float) -> None:
    assert ceiling(spec, weights).weight_bytes_per_step == pytest.approx(read, rel=0.015)


def test_weights_packed_everywhere_are_read_in_proportion() -> None:
    eight_bit = ceiling(KIMI_LINEAR, 49_122_681_728 * 0.04).weight_bytes_per_step
    assert eight_bit == pytest.approx(3_106_972_544 * 0.04, rel=1e-6)


def test_a_batch_shares_the_dense_weights_and_reaches_more_experts() -> None:
    one, many, all_ = (ceiling(KIMI_LINEAR, 98.245e9, n).weight_bytes_per_step for n in (1, 16, 10_000))
    assert one < many < 16 * one
    assert all_ == pytest.approx(98.245e9 - 2 * 163_840 * 2304, rel=1e-3)


def test_a_token_reads_and_writes_its_state_and_reads_its_whole_cache() -> None:
    shallow, deep = ceiling(KIMI_LINEAR, 98e9), ceiling(KIMI_LINEAR, 98e9, depth=1_000_000)
    assert shallow.state_bytes_per_token == 2 * 43_417_600
    assert deep.read_bytes_per_token - shallow.read_bytes_per_token == 8_064 * 1_000_000
    assert deep.decode_flops_per_token > shallow.decode_flops_per_token
    assert deep.prefill_flops_per_token > shallow.prefill_flops_per_token


def test_flops_start_at_two_per_active_parameter() -> None:
    result = ceiling(GLM, 59e9)
    assert result.decode_flops_per_token == 2 * 3_579_571_840
    assert result.prefill_flops_per_token == 2 * (3_579_571_840 - 154_880 * 2048)


def test_no_machine_no_rate() -> None:
    result = ceiling(KIMI_LINEAR, 98e9)
    assert result.decode_tokens_per_second is None
    assert result.prefill_tokens_per_second is None
    assert not {"decode_tokens_per_second", "prefill_tokens_per_second"} & result.because.keys()


def test_bandwidth_alone_bounds_decoding() -> None:
    result = ceiling(KIMI_LINEAR, 98e9, bandwidth=80e9)
    assert result.decode_tokens_per_second == 80e9 / result.read_bytes_per_token
    assert result.prefill_tokens_per_second is None


def test_the_tighter_of_bandwidth_and_compute_bounds_the_rate() -> None:
    slow = ceiling(KIMI_LINEAR, 98e9, bandwidth=80e9, compute=1e9)
    assert slow.decode_tokens_per_second == 1e9 / slow.decode_flops_per_token
    assert "FLOP" in slow.because["decode_tokens_per_second"]
    fast = ceiling(KIMI_LINEAR, 98e9, bandwidth=80e9, compute=1e15)
    assert fast.decode_tokens_per_second == 80e9 / fast.read_bytes_per_token
    assert fast.prefill_tokens_per_second == 512 * 80e9 / int(98e9)
    assert slow.prefill_tokens_per_second == 1e9 / slow.prefill_flops_per_token
