"""Read here, answered there: on the fp32 path, bit for bit the tokens and log probabilities of one engine alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from split_world import GREEDY, Engines, Make, prompt_of

from perilune.engine.request import SamplingParams

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
LENGTHS = (1, 63, 64, 65, 127, 128, 300)
SAMPLED = SamplingParams(
    max_tokens=9, temperature=0.9, top_p=0.95, top_k=40, repetition_penalty=1.1, ignore_eos=True, logprobs=2
)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("early", [False, True], ids=["whole", "streamed"])
def test_case_9_split_equals_together_at_every_boundary(golden: Path, make: Make, model: str, early: bool) -> None:
    path = golden / model
    engines = Engines(
        p=make(path, "prefill", prefill_chunk=64), d=make(path, "decode"), both=make(path, prefix_cache=False)
    )
    for length in LENGTHS:
        prompt = prompt_of(length, engines.cores["p"].spec.vocab)
        for params in (GREEDY, SAMPLED):
            together = engines.alone("both", f"together {length}", prompt, params)
            split = engines.split(f"split {length}", prompt, params, early=early)
            assert split.tokens == together.tokens, (length, params)
            assert split.events[0].remote is True
    engines.idle()
