"""After the warm-up no launch asks for a kernel that is not ready: by what Triton would compile, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perilune import LLM, SamplingParams
from perilune.engine import warm
from perilune.engine.graphs import again
from perilune.models.config import read_config
from perilune.ops.gpu.launch import Gpu
from perilune.ops.linear import triton as linear
from perilune.ops.mla import triton as mla
from perilune.ops.sample import kernels as sampling
from perilune.plan.workspace import GPU_STRETCH

SETTINGS = (
    SamplingParams(max_tokens=3, temperature=0, ignore_eos=True),
    SamplingParams(max_tokens=2, temperature=0.8, top_k=3, ignore_eos=True, prompt_logprobs=2),
    SamplingParams(max_tokens=4, temperature=1.0, top_p=0.5, min_p=0.1, logprobs=3, ignore_eos=True),
    SamplingParams(max_tokens=3, temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.3, logit_bias={3: 2.0}),
)


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches are heard and not run: interpreting takes minutes. Every draw is token 0."""

    def skipped(gpu: Gpu, kernel: Any, grid: Any, args: tuple[Any, ...], *rest: Any) -> None:
        if kernel.fn is sampling.draw.fn:
            args[2].zero_()

    monkeypatch.setattr(Gpu, "_run", skipped)


def opened(path: Path, **settings: Any) -> LLM:
    """An engine whose logits are noise: nothing that comes before them is computed."""
    llm = LLM(str(path), dtype="bfloat16", kernels="triton", **settings)
    head = llm._core.runner.head
    llm._core.runner.head = lambda rows: torch.randn(head(rows).shape)  # type: ignore[method-assign,union-attr]
    return llm


MODELS = ("kimi_linear", "kimi_linear_w4a16", "glm4_moe_lite", "kimi_k25_mxfp4", "deepseek_v3")
SHAPES = {"alone": (1, 64, 96), "few": (3, 128, 600), "many and deep": (20, 512, 4300)}
CASES = [(model, "few") for model in MODELS] + [(m, s) for m in MODELS[::2] for s in ("alone", "many and deep")]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "eager"])
@pytest.mark.parametrize(("model", "shape"), CASES)
@pytest.mark.usefixtures("dry")
def test_no_kernel_is_first_asked_for_after_the_warm_up(golden: Path, model: str, shape: str, recorded: bool) -> None:
    running, chunk, context = SHAPES[shape]
    context = min(context, read_config(golden / model).spec.max_context)
    with opened(golden / model, max_running=running, prefill_chunk=chunk, max_context=context) as llm:
        core = llm._core
        core.warm_up(again if recorded else None)
        guard = core.runner.guard
        assert guard is not None
        assert guard.ready > 20
        for length in (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 257, 511, 513, 1000, 4150):
            prompts = [tuple((i * 7 + seed) % 100 for i in range(min(length + seed, context - 8))) for seed in range(4)]
            llm.generate(prompts, SETTINGS)  # side by side
            llm.generate(prompts[0], SETTINGS[0])  # its beginning is cached
        llm.generate([tuple(range(n % 90 + 1)) for n in range(2 * running)], SETTINGS[0])
        assert sorted(set(guard.late)) == []
        assert llm.stats()["kernels_late_total"] == 0


@pytest.mark.usefixtures("dry")
def test_a_step_that_was_not_rehearsed_is_noticed(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(warm.rehearsals(2, 128, 300))
    monkeypatch.setattr(warm, "rehearsals", lambda *_: [step for step in every if len(step[0].tokens) < 64])
    with opened(golden / "kimi_linear", max_running=2, prefill_chunk=128, max_context=300) as llm:
        llm._core.warm_up()
        assert llm.stats()["kernels_late_total"] == 0
        llm.generate(tuple(range(100)), SETTINGS[0])
        assert llm._core.runner.guard is not None
        assert "moe.gated" in llm._core.runner.guard.late
        assert llm.stats()["kernels_late_total"] > 0


def test_what_is_few_and_what_a_stretch_is_are_the_kernels_own() -> None:
    assert warm.FEW == linear.FEW
    assert warm.STRETCH == GPU_STRETCH == mla.STRETCH


@given(slots=st.integers(1, 40), chunk=st.integers(1, 40).map(lambda n: n * 64), context=st.integers(1, 10_000))
def test_rehearsals_are_steps_an_engine_could_have(slots: int, chunk: int, context: int) -> None:
    for step in warm.rehearsals(slots, chunk, context):
        assert sum(len(piece.tokens) for piece in step if piece.mode == "prefill") <= chunk
        assert len({piece.slot for piece in step}) == len(step) <= slots
        for piece in step:
            assert piece.start + len(piece.tokens) <= context
            assert piece.start % 64 == 0 or piece.mode == "decode"
            assert len(piece.pages) * 64 >= piece.start + len(piece.tokens)
            assert set(piece.pages) == {0}
