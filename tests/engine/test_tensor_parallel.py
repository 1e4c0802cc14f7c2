"""A model shared by ranks answers as one that is whole: every golden family, by width and by whole experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from reference_data import MAX_DIFFERENCE, MEAN_DIFFERENCE, Golden
from tier_asks import ask, text
from torch import Tensor

from perilune import LLM, SamplingParams
from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.core import EngineCore
from perilune.engine.graphs import DecodeSteps, again
from perilune.engine.messages import Submit
from perilune.engine.request import TokenLogprobs
from perilune.errors import ConfigError
from perilune.models.checkpoint import Checkpoint
from perilune.models.share import Share
from perilune.nn.batch import Piece

SHARES = [
    ("kimi_linear", 2, False),
    ("kimi_linear", 4, True),
    ("deepseek_v3", 4, False),
    ("kimi_linear_w4a16", 2, False),
    ("kimi_linear_w4a16", 4, True),
    ("kimi_k25_mxfp4", 4, False),
    ("kimi_k25_mxfp4", 2, True),
    ("glm4_moe_lite", 5, True),  # five heads; nothing else divides by five
]
GREEDY = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(
    max_tokens=6, temperature=0.9, top_p=0.95, top_k=40, repetition_penalty=1.1, ignore_eos=True, logprobs=3
)
LENGTHS = (1, 63, 64, 65, 129)


@pytest.fixture(scope="module", params=SHARES, ids=lambda p: f"{p[0]} {'ep' if p[2] else 'tp'}{p[1]}")
def llm(request: pytest.FixtureRequest, golden: Path) -> Iterator[LLM]:
    """One engine of several processes for all tests of a share."""
    name, tp, ep = request.param
    settings = {"dtype": "float32", "max_context": 512, "max_running": 8, "prefill_chunk": 128}
    with LLM(str(golden / name), tp=tp, ep=ep, **settings) as model:
        yield model


@pytest.fixture(scope="module")
def core(llm: LLM) -> EngineCore:
    return llm._core


@pytest.fixture(scope="module")
def reference(core: EngineCore) -> Golden:
    return Golden.load(Path(core.config.model))


def test_logits_of_every_prompt(llm: LLM, reference: Golden) -> None:
    for length in reference.lengths:
        expected, ours = reference.get(length, "logits"), llm.logits(reference.prompt(length))
        difference = (ours - expected).abs()
        assert difference.max() < MAX_DIFFERENCE, length
        assert difference.mean() < MEAN_DIFFERENCE, length
        assert torch.equal(ours.argmax(-1), expected.argmax(-1)), length


def test_greedy_continuations_of_all_prompts_at_once(llm: LLM, reference: Golden) -> None:
    answers = llm.generate([reference.prompt(n) for n in reference.lengths], GREEDY)
    for length, answer in zip(reference.lengths, answers, strict=True):
        assert answer.token_ids == reference.get(length, "greedy_ids").tolist(), length


def prompt(length: int, vocab: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * length)
    return tuple(torch.randint(0, vocab - 12, (length,), generator=generator).tolist())


def run(core: EngineCore, prompts: list[tuple[int, ...]]) -> list[list[TokenLogprobs]]:
    answers: dict[str, list[TokenLogprobs]] = {str(i): [] for i in range(len(prompts))}
    for i, tokens in enumerate(prompts):
        core.add(Submit(str(i), tokens, SAMPLED, seed=7))
    while core.busy:
        for event in core.step():
            assert event.error is None
            assert event.token is not None
            answers[event.id].append(event.token)
        core.check()
    return list(answers.values())


def test_batched_equals_alone_and_warm_equals_cold_bit_for_bit(core: EngineCore) -> None:
    """The second time, prompts are found in the prefix cache: states come from snapshots on every rank."""
    prompts = [prompt(length, core.spec.vocab) for length in LENGTHS]
    together, hits = run(core, prompts), core.stats()["prefix_lookups_hit_total"]
    assert [run(core, [tokens])[0] for tokens in prompts] == together
    assert core.stats()["prefix_lookups_hit_total"] > hits


def test_each_rank_allocates_what_was_planned_and_loads_its_share_only(core: EngineCore) -> None:
    config, checkpoint = core.config, Checkpoint.open(core.config.model)
    held = core.runner.held
    assert len(held) == config.tp
    for rank, found in enumerate(held):
        share = Share(config.tp, rank, config.ep)
        assert found.cache_bytes == core.plan.cache.total_bytes
        assert found.weight_bytes == checkpoint.weight_bytes("float32", share=share, leave_embedding=True)
    whole = checkpoint.weight_bytes("float32", leave_embedding=True)
    assert whole < sum(found.weight_bytes for found in held)  # norms, routers and the way to the latents
    assert all(found.weight_bytes < whole * 0.7 for found in held)


@pytest.mark.parametrize(("name", "tp"), [("glm4_moe_lite", 2), ("glm4_moe_lite", 4), ("kimi_linear", 3)])
def test_heads_that_the_ranks_cannot_share_are_refused_before_anything_starts(golden: Path, name: str, tp: int) -> None:
    with pytest.raises(ConfigError, match=f"{tp} ranks cannot share the . (KDA|attention) heads of layer 0"):
        LLM(str(golden / name), tp=tp)


def test_the_cache_of_a_rank_holds_its_heads_and_all_latents(golden: Path) -> None:
    spec = Checkpoint.open(golden / "kimi_linear").spec
    plans = [plan_engine(EngineConfig("x", tp=tp, dtype="float32"), spec).cache for tp in (1, 2, 4)]
    assert len({plan.page_bytes for plan in plans}) == 1
    assert [plan.slot_bytes for plan in plans] == [plans[0].slot_bytes // n for n in (1, 2, 4)]


def test_prefixes_on_disk_come_back_to_every_rank_and_to_no_other_number_of_ranks(golden: Path, tmp_path: Path) -> None:
    """A page is on every rank alike, a state is put together from the heads of all: wrong bytes would change bits."""
    path, tokens = str(golden / "kimi_linear"), text(321)
    settings = {"dtype": "float32", "max_context": 512, "max_running": 2, "cache_dir": str(tmp_path)}
    with LLM(path, tp=2, **settings) as filling:
        cold = ask(filling._core, tokens)
        assert cold[1] == 0
    with LLM(path, tp=2, **settings) as warm:
        assert ask(warm._core, tokens) == (cold[0], 320)
        assert warm.stats()["tier_loaded_tokens_total"] == 320
    with LLM(path, **settings) as whole:
        assert ask(whole._core, tokens)[1] == 0


def test_recorded_steps_have_the_bits_of_those_that_are_not(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank records sums with its kernels; on a CPU, a recorded step is the same calls on inputs of its own."""
    settings = {"dtype": "float32", "max_context": 192, "max_running": len(LENGTHS), "prefill_chunk": 128}
    with LLM(str(golden / "kimi_linear"), tp=2, **settings) as llm:
        core = llm._core
        prompts = [prompt(length, core.spec.vocab) for length in LENGTHS]
        eager = run(core, prompts)
        core.runner.record(range(1, len(LENGTHS) + 1), 192, again)
        core.runner.settle()
        replay, replayed = DecodeSteps.run, list[int]()

        def counted(steps: DecodeSteps, pieces: Sequence[Piece]) -> Tensor:
            replayed.append(len(pieces))
            return replay(steps, pieces)

        monkeypatch.setattr(DecodeSteps, "run", counted)
        assert run(core, prompts) == eager
        assert len(replayed) >= SAMPLED.max_tokens - 1


@pytest.mark.parametrize(("name", "ep"), [("kimi_linear", False), ("kimi_linear_w4a16", True)])
def test_bfloat16_stays_within_its_rounding_on_ranks_too(golden: Path, name: str, ep: bool) -> None:
    """The kernels, and parts that travel in bfloat16: the limits are those of one rank."""
    reference = Golden.load(golden / name)
    with LLM(str(golden / name), dtype="bfloat16", max_context=512, max_running=2, tp=2, ep=ep) as rounded:
        for length in (17, 130):
            expected, ours = reference.get(length, "logits"), rounded.logits(reference.prompt(length))
            relative = (ours - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert relative.median() < 0.04, length
            assert relative.mean() < 0.06, length
        answers = [answer.token_ids for answer in rounded.generate([reference.prompt(17)] * 2, GREEDY)]
        assert answers[0] == answers[1]
