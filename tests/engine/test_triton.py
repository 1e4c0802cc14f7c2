"""Whole models on the GPU's kernels, run by Triton's interpreter, against the fp32 results of the golden data."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference_data import Golden

from perilune import LLM, SamplingParams
from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.ops.select import OPS

GREEDY = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("model", ["kimi_linear_w4a16", "kimi_k25_mxfp4"])
def test_a_golden_model_runs_end_to_end_on_triton(golden: Path, model: str) -> None:
    reference = Golden.load(golden / model)
    prompt = reference.prompt(reference.lengths[0])
    rows = []
    for kernels in ("triton", "reference"):
        with LLM(str(reference.path), dtype="bfloat16", kernels=kernels, max_context=128, max_running=1) as llm:
            rows.append(llm.logits(prompt))
            assert len(llm.generate([prompt], GREEDY)[0].token_ids) == 3
    expected = reference.get(reference.lengths[0], "logits")
    errors = [float(((r - expected).norm(dim=-1) / expected.norm(dim=-1)).median()) for r in rows]
    assert errors[0] < max(1.5 * errors[1], 0.03), errors


def test_every_op_is_served_by_triton(golden: Path) -> None:
    path = golden / "kimi_linear"
    core = EngineCore(EngineConfig.of(str(path), dtype="bfloat16", kernels="triton", max_context=128), path)
    served = {choice.op for choice in core.runner.selection.choices if choice.backend == "triton (gfx1151)"}
    assert served == set(OPS)
