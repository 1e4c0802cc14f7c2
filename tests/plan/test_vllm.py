"""vLLM's one pool for two kinds of memory, against what vLLM itself logged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.cache.geometry import CacheGeometry
from perilune.errors import ConfigError
from perilune.models.config import read_config
from perilune.plan.vllm import VllmPages, plan_vllm
from perilune.units import GIB

CONFIGS = Path(__file__).parents[1] / "data"
KIMI = read_config(CONFIGS / "kimi-linear-48b").spec


def pages(tp: int = 1, **more: bool) -> VllmPages:
    return VllmPages.of(CacheGeometry.of(KIMI, "bfloat16", tp), **more)


def test_the_log_of_issue_28228_is_reproduced() -> None:
    """Two RTX 3090, 2.30 GiB of cache: 960 tokens, 1.89 % padding, one padding layer (5 % of 20), 75,840, 2.48x."""
    found = pages(tp=2)
    assert found.block_tokens == 960
    assert f"{found.padding:.2%}" == "1.89%"
    assert (found.latent_groups, found.state_groups, found.padding_layers) == (1, 3, 1)
    assert found.padding_layers / 20 == 0.05
    blocks = int(2.295 * GIB) // found.block_bytes
    assert found.logged_tokens(blocks) == 75_840
    assert f"{found.concurrency(blocks, 120_000):.2f}" == "2.48"


@pytest.mark.parametrize(("tp", "tokens"), [(1, 1920), (2, 960), (4, 512), (8, 256)])
def test_the_block_shrinks_with_the_rank_but_latents_do_not(tp: int, tokens: int) -> None:
    assert pages(tp).block_tokens == tokens
    assert pages(tp).latent_bytes == 1152


@given(st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([64, 128]))
def test_a_page_holds_a_state_and_is_no_larger_than_it_must_be(tp: int, alignment: int) -> None:
    found = VllmPages.of(CacheGeometry.of(KIMI, "bfloat16", tp), alignment=alignment)
    assert found.page_bytes >= found.state_bytes
    assert (found.block_tokens - alignment) * found.latent_bytes < found.state_bytes
    assert found.block_tokens % alignment == 0
    assert found.groups * found.group_layers - found.padding_layers == len(KIMI.layers)


@given(st.integers(1, 1 << 20))
def test_blocks_step_exactly_behind_a_full_block(tokens: int) -> None:
    found = pages(2)
    full = -(-tokens // 960) * 960
    assert found.blocks(tokens) == full // 960 + 3 == found.blocks(full)
    assert found.blocks(full + 1) == found.blocks(full) + 1


def test_the_prefix_cache_doubles_the_states() -> None:
    assert pages(2, prefix_cache=True).blocks(1) == 1 + 2 * 3


@pytest.mark.parametrize("model", ["glm-4.7-flash", "kimi-k2.5"])
def test_a_model_without_state_has_plain_blocks_of_64(model: str) -> None:
    spec = read_config(CONFIGS / model).spec
    found = VllmPages.of(CacheGeometry.of(spec, "bfloat16"))
    assert (found.block_tokens, found.groups, found.padding_layers, found.padding) == (64, 1, 0, 0.0)
    assert found.block_bytes == CacheGeometry.of(spec, "bfloat16").page_bytes


def plan(**changes):
    given = {"context": 65536, "concurrency": 2, "weights_bytes": 30_500_000_000, "memory": 110 * GIB, **changes}
    return plan_vllm(KIMI, **given)


def test_what_is_lost_is_what_perilune_would_not_take() -> None:
    found = plan(tp=2)
    ours = CacheGeometry.of(KIMI, "bfloat16", 2).sequence_bytes(65536)
    assert found.lost_bytes == 2 * (found.sequence_bytes - ours) > 0
    assert found.fits
    assert found.cache_bytes <= found.budget_bytes - found.weights_bytes - found.workspace_bytes


def test_it_fits_until_one_block_is_missing() -> None:
    found = plan()
    need = found.weights_bytes + found.workspace_bytes + 2 * found.sequence_bytes
    assert plan(memory=need, utilization=1).fits
    assert not plan(memory=need - 1, utilization=1).fits
    assert not plan(memory=GIB).fits


@pytest.mark.parametrize("wrong", [{"utilization": 0}, {"utilization": 1.1}, {"context": 1 << 21}, {"tp": 3}])
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        plan(**wrong)


def test_the_command_plans_vllm_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from perilune.cli.app import main; main()"
    words = ["plan", str(CONFIGS / "kimi-linear-48b"), "--engine", "vllm", "--tp", "2", "--device", "strix-halo"]
    run = lambda *more: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code, *words, *more], capture_output=True, text=True, timeout=120, check=False
    )
    shown = run()
    assert shown.returncode == 0, shown.stderr
    assert "960 tokens" in shown.stdout
    assert "lost" in shown.stdout
    data = json.loads(run("--json").stdout)
    assert data["block_tokens"] == 960
    assert data["because"]["block_tokens"]
