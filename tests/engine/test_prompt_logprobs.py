"""Log probabilities of a prompt's own tokens: bit for bit those of `logits`, however the prompt was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.llm import LLM
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.request import PromptLogprobs, SamplingParams
from perilune.engine.scores import BLOCK, PromptScores
from perilune.errors import RequestError

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16")
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 200)
TOP = 3
ALONE = SamplingParams(max_tokens=0, prompt_logprobs=TOP)
PLAIN = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
Entries = tuple[PromptLogprobs | None, ...]


def make(path: Path, **settings: object) -> EngineCore:
    given = {"dtype": "float32", "max_context": 512, "max_running": 16} | settings
    return EngineCore(EngineConfig.of(str(path), **given), path)


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return tuple(torch.randint(0, 240, (length,), generator=generator).tolist())


def run(core: EngineCore, *prompts: tuple[int, ...], params: SamplingParams = ALONE) -> list[list[TokenEvent]]:
    """All prompts at once; the cache's books are proved after every step."""
    for i, tokens in enumerate(prompts):
        core.add(Submit(str(i), tokens, params, seed=i))
    return finish(core, len(prompts))


def finish(core: EngineCore, count: int) -> list[list[TokenEvent]]:
    events: list[list[TokenEvent]] = [[] for _ in range(count)]
    while core.busy:
        for event in core.step():
            assert event.error is None
            events[int(event.id)].append(event)
        core.check()
    assert core.stats()["pages_used"] == core.stats()["slots_used"] == 0
    return events


def expected(core: EngineCore, tokens: tuple[int, ...]) -> Entries:
    """From all logits at once."""
    scores = core.logits(tokens).log_softmax(-1)
    best = scores.topk(TOP, dim=-1)
    entries: list[PromptLogprobs | None] = [None]
    for row, token in enumerate(tokens[1:]):
        top = tuple(zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True))
        rank = 1 + int((scores[row] > scores[row, token]).sum())
        entries.append(PromptLogprobs(token, float(scores[row, token]), top, rank))
    return tuple(entries)


@pytest.fixture(scope="module", params=MODELS)
def path(request: pytest.FixtureRequest, golden: Path) -> Path:
    return golden / request.param


@pytest.mark.parametrize("chunk", [64, 512])
def test_they_equal_the_logits_alone_batched_and_in_chunks(path: Path, chunk: int) -> None:
    core = make(path, prefill_chunk=chunk)
    prompts = [text(length) for length in LENGTHS]
    for tokens, events in zip(prompts, run(core, *prompts), strict=True):
        [event] = events
        assert event.prompt_logprobs == expected(core, tokens), f"prompt of {len(tokens)} tokens"
        assert (event.token, event.finish_reason) == (None, "length")


def test_they_do_not_depend_on_who_decodes_beside_them_nor_change_what_is_generated(golden: Path) -> None:
    core, tokens = make(golden / "kimi_linear", prefill_chunk=64), text(150)
    quiet = [event.token for event in run(core, tokens, params=PLAIN)[0]]
    both = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, prompt_logprobs=TOP)
    core.add(Submit("1", text(20), SamplingParams(max_tokens=9, ignore_eos=True), 0))
    core.step()
    core.add(Submit("0", tokens, both, 0))
    first, second = finish(core, 2)[0]
    assert first.prompt_logprobs == expected(core, tokens)
    assert second.prompt_logprobs is None
    assert [first.token, second.token] == quiet


@pytest.mark.parametrize("length", [64, 65, 200])
def test_a_prompt_that_is_cached_is_computed_again_and_serves_the_next(path: Path, length: int) -> None:
    core, tokens = make(path), text(length)
    run(core, tokens, params=PLAIN)
    looked_up = core.cache.counts.named()
    [[event]] = run(core, tokens)
    assert event.prompt_logprobs == expected(core, tokens)
    assert event.cached_tokens == 0
    reused = "prefix_state_matched_tokens_total"
    assert core.cache.counts.named()[reused] == looked_up[reused]
    assert run(core, tokens, params=PLAIN)[0][0].cached_tokens == (length - 1) // 64 * 64


def test_what_was_asked_for_stays_in_the_cache_for_others(path: Path) -> None:
    core, tokens = make(path), text(200)
    run(core, tokens)
    assert run(core, tokens, params=PLAIN)[0][0].cached_tokens == 192


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_preempted_while_prefilling_they_are_complete_and_computed_once(
    path: Path, steps: int, prefix_cache: bool
) -> None:
    core, tokens = make(path, prefill_chunk=64, prefix_cache=prefix_cache), text(250)
    core.add(Submit("0", tokens, ALONE, 0))
    for _ in range(steps):
        core.step()
    core.scheduler._preempt(core.scheduler.running[0])
    core.check()
    [[event]] = finish(core, 1)
    assert event.prompt_logprobs == expected(core, tokens)
    assert core.stats()["prompt_tokens_total"] == 250 + (0 if prefix_cache else 64 * steps)


def test_no_more_than_a_block_of_logits_exists_at_once() -> None:
    prompt, sizes = text(300), []

    def head(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return rows

    whole, parts = PromptScores(prompt, 2), PromptScores(prompt, 2)
    rows = torch.randn(300, 400)
    whole.add(0, rows, head)
    assert max(sizes) == BLOCK
    for start, end in ((0, 64), (0, 192), (128, 300)):  # what a preempted request may compute again counts once
        assert parts.reusable is not None
        assert parts.reusable <= 192
        parts.add(start, rows[start:end], head)
    assert parts.reusable is None
    assert parts.entries == whole.entries
    assert sum(sizes) == 2 * 299


def test_the_python_api_returns_them_with_each_of_n_answers(golden: Path) -> None:
    with LLM(str(golden / "kimi_linear"), dtype="float32", max_context=256) as llm:
        params = SamplingParams(n=2, max_tokens=3, seed=1, prompt_logprobs=0)
        answers = llm.generate([list(text(70))], params)
        scores = llm.logits(text(70)).log_softmax(-1)
        for answer in answers:
            assert answer.prompt_logprobs is not None
            assert answer.prompt_logprobs[0] is None
            for row, entry in enumerate(answer.prompt_logprobs[1:]):
                assert entry is not None
                assert (entry.token_id, entry.top) == (text(70)[row + 1], ())
                assert entry.logprob == float(scores[row, entry.token_id])


def test_max_tokens_0_computes_the_prompt_and_nothing_else(golden: Path) -> None:
    with LLM(str(golden / "kimi_linear"), dtype="float32", max_context=256) as llm:
        [answer] = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=0))
        assert (answer.text, answer.token_ids, answer.prompt_logprobs) == ("", [], None)
        assert (answer.finish_reason, answer.prompt_tokens) == ("length", 3)
        assert llm.stats()["generation_tokens_total"] == 0


@pytest.mark.parametrize("value", [-1, 21, 1.5, True])
def test_a_number_out_of_range_names_its_field(value: object) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(prompt_logprobs=value)
    assert caught.value.param == "prompt_logprobs"
