"""Warm = cold, bit for bit on the fp32 reference path: what was kept never shows in an answer, only in its cost.

Every answer is compared with that of an engine that keeps nothing. After every step the books are proved, and every
page and state in the tree is compared with what any engine ever had for the same tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perilune.cache.radix import Node
from perilune.cache.snapshots import reusable
from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.llm import LLM
from perilune.engine.messages import Submit
from perilune.engine.request import SamplingParams, TokenLogprobs
from perilune.nn.batch import Piece

MODELS = ("kimi_linear", "deepseek_v3", "glm4_moe_lite", "kimi_linear_w4a16", "kimi_k25_mxfp4")
LENGTHS = (1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257, 319, 320, 321)
PARAMS = SamplingParams(max_tokens=4, temperature=0.8, ignore_eos=True, logprobs=4)
Answer = list[TokenLogprobs]


@dataclass
class Lab:
    """Engines over one checkpoint; `bytes_of` remembers what every prefix was ever given."""

    path: Path
    pages_of: dict[tuple[int, ...], bytes] = field(default_factory=dict)
    states_of: dict[tuple[int, ...], bytes] = field(default_factory=dict)
    answers: dict[tuple[tuple[int, ...], int], Answer] = field(default_factory=dict)
    _cold: EngineCore | None = None

    def engine(self, **settings: object) -> EngineCore:
        given = {"dtype": "float32", "max_context": 1024, "max_running": 4, "snapshot_interval": 128} | settings
        return EngineCore(EngineConfig.of(str(self.path), **given), self.path)

    def cold(self, tokens: tuple[int, ...], params: SamplingParams = PARAMS) -> Answer:
        """What an engine without a prefix cache answers, computed once."""
        key = (tokens, params.max_tokens or 0)
        if key not in self.answers:
            self._cold = self._cold or self.engine(prefix_cache=False)
            self._cold.add(Submit("cold", tokens, params, seed=7))
            self.answers[key] = []
            while self._cold.busy:
                self.answers[key] += [event.token for event in self._cold.step() if event.token]
        return self.answers[key]

    def run(
        self,
        core: EngineCore,
        *prompts: tuple[int, ...],
        params: SamplingParams = PARAMS,
        marks: tuple[int, ...] = (),
    ) -> list[int]:
        """All prompts at once; every answer is that of `cold`. Returns how many tokens of each were cached."""
        for number, tokens in enumerate(prompts):
            core.add(Submit(str(number), tokens, params, seed=7, marks=marks))
        answers: list[Answer] = [[] for _ in prompts]
        cached = [0] * len(prompts)
        while core.busy:
            for event in self.step(core):
                assert event.error is None
                assert event.token is not None
                answers[int(event.id)].append(event.token)
                cached[int(event.id)] = event.cached_tokens
        for tokens, answer in zip(prompts, answers, strict=True):
            assert answer == self.cold(tokens, params), f"prompt of {len(tokens)} tokens"
        stats = core.stats()
        assert (stats["pages_used"], stats["slots_used"]) == (0, 0)
        return cached

    def step(self, core: EngineCore) -> list:
        events = core.step()
        core.check()
        self.compare(core)
        return events

    def compare(self, core: EngineCore) -> None:
        """Same tokens, same bits: whoever wrote a page or a state, alone or batched, warm or cold."""
        arenas, kda = core.runner.arenas, core.spec.kda_layers
        for node in core.cache._tree._nodes.values():
            tokens = spelled(node)
            assert self.pages_of.setdefault(tokens, digest(arenas.page_arena.tensor[node.page])) == digest(
                arenas.page_arena.tensor[node.page]
            )
            if node.snapshot is not None:
                parts = [view(layer)[node.snapshot] for layer in kda for view in (arenas.state, arenas.conv)]
                found = digest(*parts)
                assert self.states_of.setdefault(tokens, found) == found, f"state after {len(tokens)} tokens"


def spelled(node: Node | None) -> tuple[int, ...]:
    return () if node is None else (*spelled(node.parent), *node.key)


def digest(*parts: Tensor) -> bytes:
    return hashlib.sha1(b"".join(part.numpy().tobytes() for part in parts)).digest()


def text(length: int, seed: int = 0) -> tuple[int, ...]:
    """Token ids every golden vocabulary has."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 200, (length,), generator=generator).tolist())


@pytest.fixture(scope="module", params=MODELS)
def lab(request: pytest.FixtureRequest, golden: Path) -> Lab:
    return Lab(golden / request.param)


@pytest.fixture(scope="module")
def hybrid(golden: Path) -> Lab:
    return Lab(golden / "kimi_linear")


@pytest.mark.parametrize("chunk", [64, 512])
def test_warm_equals_cold_at_every_boundary(lab: Lab, chunk: int) -> None:
    core, base = lab.engine(prefill_chunk=chunk, snapshot_slots=100), text(321)
    for length in LENGTHS:
        lab.run(core, base[:length])
    for length in LENGTHS:  # all that can be reused, now is
        assert lab.run(core, base[:length]) == [reusable(length)]
    for length in LENGTHS:  # the same beginning, another end
        lab.run(core, (*base[:length], *text(70, seed=length)))
    assert core.stats()["prefix_recomputed_tokens_total"] == 0 or core.spec.kda_layers


def test_warm_in_a_batch_equals_cold_alone(lab: Lab) -> None:
    core, base = lab.engine(prefill_chunk=128), text(321)
    lab.run(core, base)
    prompts = [(*base[:cut], *text(30, seed=cut)) for cut in (63, 64, 128, 200, 320)]
    assert sum(lab.run(core, *prompts)) > 0
    assert sum(lab.run(core, *prompts)) > sum(reusable(len(p)) for p in prompts) / 2


def test_requests_that_share_a_prefix_in_the_same_step(lab: Lab) -> None:
    core, base = lab.engine(prefill_chunk=512), text(150)
    prompts = [(*base, *text(20, seed=seed)) for seed in range(3)]
    lab.run(core, *prompts)
    assert lab.run(core, *prompts) == [reusable(170)] * 3


def test_a_shared_head_with_other_tails_hits_at_the_second_request(lab: Lab) -> None:
    core, base = lab.engine(), text(384)
    tails = [(*base, *text(40, seed=seed)) for seed in range(4)]
    assert lab.run(core, tails[0]) == [0]
    assert lab.run(core, tails[1])[0] >= 384 - 64
    assert lab.run(core, tails[2]) == lab.run(core, tails[3]) == [384]


def test_a_branch_far_before_the_end_costs_two_misses(hybrid: Lab) -> None:
    core, base = hybrid.engine(snapshot_interval=1024), text(256)
    prompts = [(*base, *text(220, seed=seed)) for seed in range(3)]
    assert [hybrid.run(core, prompt) for prompt in prompts] == [[0], [0], [256]]
    stats = core.stats()
    assert stats["prefix_snapshots_branch_total"] == 1
    assert stats["prefix_recomputed_tokens_total"] == 256
    assert stats["prefix_lookups_no_snapshot_total"] == 1


@pytest.mark.parametrize("mark", [63, 64, 65, 127, 128, 129, 191, 192])
@pytest.mark.parametrize("chunk", [64, 512])
def test_a_marked_place_is_reused_at_the_second_request(hybrid: Lab, mark: int, chunk: int) -> None:
    """Without the mark the state nearest to it would lie at the first prompt's end."""
    core, base = hybrid.engine(snapshot_interval=1024, prefill_chunk=chunk), text(192)
    first, second = ((*base[:mark], *text(300, seed=seed)) for seed in (1, 2))
    assert hybrid.run(core, first, marks=(mark, mark, 10**6)) == [0]
    assert hybrid.run(core, second) == [mark // 64 * 64]
    assert core.stats()["prefix_snapshots_mark_total"] == (1 if mark >= 64 else 0)


def test_a_conversation_never_computes_a_turn_twice(lab: Lab) -> None:
    core, said = lab.engine(), text(70)
    for turn in range(4):
        cached = lab.run(core, said)[0]
        assert cached >= (len(said) - 60) // 64 * 64 - 64 if turn else cached == 0
        said = (*said, *(token.token_id for token in lab.cold(said)), *text(50, seed=turn))


def test_what_decoding_wrote_is_not_shared(lab: Lab) -> None:
    """Its bits are not those of a cold prefill of the same tokens."""
    core, params = lab.engine(), SamplingParams(max_tokens=80, temperature=0, ignore_eos=True)
    lab.run(core, text(60), params=params)
    answer = tuple(token.token_id for token in lab.cold(text(60), params))
    assert core.stats()["pages_cached"] == 0
    assert lab.run(core, (*text(60), *answer)) == [0]


def test_after_eviction_of_pages_and_snapshots(lab: Lab) -> None:
    per_page, per_slot = lab.engine().plan.cache.page_bytes, lab.engine().plan.cache.slot_bytes
    core = lab.engine(max_running=2, snapshot_slots=1, cache_bytes=3 * per_slot + 9 * per_page)
    for seed in (0, 1, 2, 1, 0, 2):
        lab.run(core, (*text(200, seed=seed), *text(60, seed=seed)))
        lab.run(core, (*text(200, seed=seed), *text(90, seed=seed)))
    stats = core.stats()
    assert stats["prefix_evicted_pages_total"] > 0
    assert stats["prefix_evicted_snapshots_total"] > 0 or not core.spec.kda_layers
    assert stats["prefix_state_matched_tokens_total"] > 0


def test_after_preemption(lab: Lab) -> None:
    params = SamplingParams(max_tokens=90, temperature=0.7, ignore_eos=True, logprobs=2)
    per_page, per_slot = lab.engine().plan.cache.page_bytes, lab.engine().plan.cache.slot_bytes
    core = lab.engine(cache_bytes=4 * per_slot + 10 * per_page, prefill_chunk=64)
    base = text(130)
    prompts = [(*base[:cut], *text(20, seed=cut)) for cut in (64, 100, 128, 130)]
    lab.run(core, *prompts, params=params)
    assert core.stats()["preemptions_total"] > 0
    lab.run(core, *prompts, params=params)


@pytest.mark.parametrize("steps", range(1, 7))
def test_an_abort_during_prefill_loses_nothing_and_keeps_no_rubbish(hybrid: Lab, steps: int) -> None:
    core, tokens = hybrid.engine(prefill_chunk=64), text(400, seed=3)
    core.add(Submit("gone", tokens, PARAMS, seed=7))
    for _ in range(steps):
        hybrid.step(core)
    core.abort("gone")
    core.check()
    hybrid.compare(core)
    assert core.stats()["pages_used"] == core.stats()["slots_used"] == 0
    assert hybrid.run(core, tokens) == [steps * 64]


def test_a_step_that_fails_half_way_leaves_nothing_behind(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    core, tokens = lab.engine(prefill_chunk=64, snapshot_interval=1024), text(300, seed=4)
    core.add(Submit("doomed", tokens, PARAMS, seed=7))
    lab.step(core)
    run = core.runner.run

    def fail(pieces: list[Piece]) -> Tensor:
        run(pieces)  # every tensor is written, but nobody may believe it
        raise RuntimeError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(core.runner, "run", fail)
        assert [event.finish_reason for event in lab.step(core)] == ["error"]
    assert core.stats()["pages_used"] == core.stats()["slots_used"] == 0
    lab.run(core, tokens)
    lab.run(core, tokens)


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_an_arena_that_is_full_makes_way_and_runs_everybody(hybrid: Lab, slots: int) -> None:
    core, base = hybrid.engine(max_running=2, snapshot_slots=slots, prefill_chunk=128), text(200)
    prompts = [(*base, *text(30 * seed, seed=seed)) for seed in range(1, 6)]
    hybrid.run(core, *prompts)
    hybrid.run(core, *prompts)
    assert core.stats()["prefix_evicted_snapshots_total"] > 0
    assert core.stats()["cache_bytes_allocated"] == core.stats()["cache_bytes_planned"]


def test_the_last_row_is_taken_over_with_the_state_in_it(hybrid: Lab) -> None:
    """One row in all: the request runs in the snapshot it starts from."""
    core, tokens = hybrid.engine(max_running=1, snapshot_slots=0), text(128, seed=5)
    hybrid.run(core, tokens, params=SamplingParams(max_tokens=1, temperature=0.8, ignore_eos=True, logprobs=4))
    assert core.stats()["snapshots"] == 1  # the slot itself, donated
    assert hybrid.run(core, (*tokens, 5)) == [128]


def test_interval_snapshots_go_when_the_prompts_end_has_one(hybrid: Lab) -> None:
    core, tokens = hybrid.engine(prefill_chunk=64), text(700, seed=6)
    hybrid.run(core, tokens)
    stats = core.stats()
    assert stats["prefix_snapshots_interval_total"] >= 4
    assert stats["prefix_snapshots_prompt_end_total"] == 1
    assert stats["snapshots"] == 2  # the end, and a place before it


def test_without_a_prefix_cache_nothing_is_kept(lab: Lab) -> None:
    core, tokens = lab.engine(prefix_cache=False), text(200)
    assert lab.run(core, tokens) == lab.run(core, tokens) == [0]
    stats = core.stats()
    assert stats["pages_cached"] == stats["snapshots"] == stats["snapshot_slots"] == 0
    assert not any(name.startswith("prefix_") for name in stats)


def test_cached_tokens_reach_the_completion(hybrid: Lab) -> None:
    with LLM(str(hybrid.path), dtype="float32", max_context=512) as llm:
        greedy = SamplingParams(max_tokens=2, temperature=0)
        first, second = (llm.generate([list(text(200))], greedy)[0] for _ in range(2))
        assert (first.cached_tokens, second.cached_tokens) == (0, 192)
        assert first.token_ids == second.token_ids
        assert torch.equal(llm.logits(text(200)), llm.logits(text(200)))
