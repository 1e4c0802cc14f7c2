"""The built-in checkpoint is an ordinary one: transformers loads it by name and continues prompts the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from perilune import LLM, SamplingParams
from perilune.builtin import model_path

TOKENS = 16
LIMIT = 2e-3
PROMPTS = ["What is a page?", "perilune", "12 + 7 ="]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """fp32 from the stored values, so that A_log and dt_bias keep theirs (at bf16 transformers rounds them)."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        model_path(), dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert {key: list(value) for key, value in report.items() if value} == {}
    return model.eval()


@pytest.fixture(scope="module")
def ours() -> Iterator[LLM]:
    with LLM("builtin", dtype="float32", max_context=256, max_running=4) as llm:
        yield llm


def prompts(llm: LLM) -> list[list[int]]:
    tokenizer = llm._core.tokenizer
    assert tokenizer is not None
    return [tokenizer.encode(text) for text in PROMPTS]


def test_logits_of_short_and_two_chunk_prompts(ours: LLM, theirs: Any) -> None:
    vocab = ours._core.spec.vocab
    random = torch.Generator().manual_seed(0)
    long = torch.randint(0, vocab - 40, (90,), generator=random).tolist()
    for ids in [*prompts(ours), long]:
        with torch.inference_mode():
            expected = theirs(torch.tensor([ids])).logits[0].float()
        difference = (ours.logits(ids) - expected).abs()
        assert float(difference.max()) < LIMIT * max(1.0, float(expected.std()))


def test_greedy_continuations(ours: LLM, theirs: Any) -> None:
    params = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True)
    for ids, answer in zip(prompts(ours), ours.generate(prompts(ours), params), strict=True):
        with torch.inference_mode():
            whole = theirs.generate(
                torch.tensor([ids]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
            )
        assert answer.token_ids == whole[0, len(ids) :].tolist()
