"""Bit for bit on the fp32 reference path: how a request was scheduled never shows in its result.

Every comparison is `torch.equal` on log probabilities or raw logits, at every length around 64-token boundaries.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit
from perilune.engine.request import SamplingParams, TokenLogprobs

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 191, 193)
ANSWER = 12


def make(path: Path, **settings: object) -> EngineCore:
    config = EngineConfig.of(str(path), **{"dtype": "float32", "max_context": 512, "max_running": 16} | settings)
    return EngineCore(config, path)


def prompt(length: int, vocab: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return tuple(torch.randint(0, vocab - 12, (length,), generator=generator).tolist())


def run(core: EngineCore, prompts: list[tuple[int, ...]], params: SamplingParams) -> list[list[TokenLogprobs]]:
    """All prompts at once; the cache's books are proved after every step."""
    answers: dict[str, list[TokenLogprobs]] = {str(i): [] for i in range(len(prompts))}
    for i, tokens in enumerate(prompts):
        core.add(Submit(str(i), tokens, params, seed=7 + i))
    while core.busy:
        for event in core.step():
            assert event.error is None
            assert event.token is not None
            answers[event.id].append(event.token)
        core.check()
    stats = core.stats()
    assert stats["pages_used"] == 0
    assert stats["slots_used"] == 0
    return list(answers.values())


GREEDY = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True, logprobs=5)
SAMPLED = SamplingParams(
    max_tokens=ANSWER, temperature=0.9, top_p=0.95, top_k=40, repetition_penalty=1.1, ignore_eos=True, logprobs=3
)


@pytest.fixture(scope="module", params=MODELS)
def path(request: pytest.FixtureRequest, golden: Path) -> Path:
    return golden / request.param


def test_prompt_in_chunks_equals_whole_at_every_boundary(path: Path) -> None:
    whole, chunked = make(path, prefill_chunk=512), make(path, prefill_chunk=64)
    for length in LENGTHS:
        tokens = prompt(length, whole.spec.vocab)
        assert run(whole, [tokens], GREEDY) == run(chunked, [tokens], GREEDY), length


def test_batched_equals_alone_at_every_boundary(path: Path) -> None:
    core = make(path, prefill_chunk=128)
    prompts = [prompt(length, core.spec.vocab) for length in LENGTHS]
    together = run(core, prompts, SAMPLED)
    for i, tokens in enumerate(prompts):
        core.add(Submit("alone", tokens, SAMPLED, seed=7 + i))
        alone = []
        while core.busy:
            alone += [event.token for event in core.step()]
        assert alone == together[i], f"prompt of {len(tokens)} tokens"


def test_preempted_and_resumed_equals_uninterrupted(path: Path) -> None:
    params = SamplingParams(max_tokens=90, temperature=0.7, ignore_eos=True, logprobs=2)
    roomy, tight = make(path), make(path, max_running=4)
    # four requests of up to 155 tokens want twelve pages; seven force somebody out again and again
    per_page, per_slot = tight.plan.cache.page_bytes, tight.plan.cache.slot_bytes
    tight = make(path, max_running=4, cache_bytes=4 * per_slot + 7 * per_page)
    prompts = [prompt(length, roomy.spec.vocab) for length in (30, 63, 64, 65)]
    expected = run(roomy, prompts, params)
    assert run(tight, prompts, params) == expected
    assert tight.stats()["preemptions_total"] > 0


def test_logits_in_one_pass_equal_what_generate_samples_from(path: Path) -> None:
    core = make(path)
    tokens = prompt(130, core.spec.vocab)
    row = core.logits(tokens)[-1].log_softmax(-1)
    first = run(core, [tokens], GREEDY)[0][0]
    assert first.logprob == float(row[first.token_id])
    assert first.token_id == int(row.argmax())
