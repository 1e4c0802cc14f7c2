"""Warm = cold with the C++ kernels, in bf16 and with packed weights.

What is kept is exact here too: a warm run has, bit for bit, the logits of a cold run that was cut where reuse starts,
since then both give the kernels the same rows. Against a cold run cut elsewhere, kernels that choose by the number of
rows (int8 activations for few rows of 4-bit weights) may round otherwise, and a rounding may flip an expert; there the
tolerance is the error bf16 has anyway: one and a half times the distance of the cold run from fp32, in the median.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit
from perilune.engine.request import SamplingParams
from perilune.nn.batch import Piece
from perilune.ops.native import Native

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
TAILS = (1, 2, 15, 16, 17, 33, 63, 64, 65, 128)
ONE = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)


@dataclass
class Watched:
    """An engine, and the logits [V] of the token it sampled last."""

    core: EngineCore
    logits: list[Tensor] = field(default_factory=list)

    @staticmethod
    def open(path: Path, **settings: object) -> Watched:
        given = {"dtype": "bfloat16", "max_context": 512, "max_running": 2, **settings}
        watched = Watched(EngineCore(EngineConfig.of(str(path), **given), path))
        run = watched.core.runner.run

        def remember(pieces: list[Piece]) -> Tensor:
            logits = run(pieces)
            watched.logits.append(logits.clone())
            return logits

        watched.core.runner.run = remember  # type: ignore[method-assign]
        return watched

    def ask(self, tokens: tuple[int, ...]) -> tuple[Tensor, int]:
        """(the logits after the prompt, how many of its tokens were cached)."""
        self.core.add(Submit("one", tokens, ONE, seed=7))
        cached = 0
        while self.core.busy:
            for event in self.core.step():
                assert event.error is None
                cached = event.cached_tokens
            self.core.check()
        return self.logits[-1][0], cached


def text(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 200, (length,), generator=generator).tolist())


def distance(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.fixture(params=MODELS)
def path(request: pytest.FixtureRequest, golden: Path) -> Path:
    if isinstance(reason := Native.load(), str):
        pytest.skip(reason)
    return golden / request.param


@pytest.mark.parametrize("kept", [128, 256])
def test_a_warm_run_has_the_bits_of_a_cold_run_cut_where_reuse_starts(path: Path, kept: int) -> None:
    base = text(kept, kept)
    cold = Watched.open(path, prefix_cache=False, prefill_chunk=kept)
    warm = Watched.open(path, snapshot_slots=40)
    warm.ask(base)
    for tail in TAILS:
        tokens = (*base, *text(tail, 1000 + tail))
        (ours, cached), (expected, _) = warm.ask(tokens), cold.ask(tokens)
        assert cached == kept
        assert torch.equal(ours, expected), tail


def test_a_warm_run_is_as_near_to_a_cold_run_as_that_is_to_fp32(path: Path) -> None:
    cold, exact = Watched.open(path, prefix_cache=False), Watched.open(path, prefix_cache=False, dtype="float32")
    warm, errors, differences = Watched.open(path, snapshot_slots=40), list[float](), list[float]()
    for kept in (64, 192):
        base = text(kept, kept)
        warm.ask(base)
        for tail in TAILS:
            tokens = (*base, *text(tail, 1000 + tail))
            (ours, cached), (whole, _), (truth, _) = warm.ask(tokens), cold.ask(tokens), exact.ask(tokens)
            assert cached == kept
            differences.append(distance(ours, whole))
            errors.append(distance(whole, truth))
    print(f"{path.name}: warm to cold {median(differences):.4f}, cold to fp32 {median(errors):.4f}")
    assert median(differences) <= 1.5 * median(errors)


def test_what_comes_back_from_lower_tiers_is_what_went_there(path: Path, tmp_path: Path) -> None:
    base, kept = text(256, 9), 256
    settings = {"cache_dir": str(tmp_path), "cache_host_bytes": 2**24}
    warm = Watched.open(path, **settings)
    warm.ask(base)
    warm.core.close()
    again, cold = Watched.open(path, **settings), Watched.open(path, prefix_cache=False, prefill_chunk=kept)
    for tail in (1, 16, 65):
        tokens = (*base, *text(tail, tail))
        (ours, cached), (expected, _) = again.ask(tokens), cold.ask(tokens)
        assert cached == kept
        assert torch.equal(ours, expected), tail
