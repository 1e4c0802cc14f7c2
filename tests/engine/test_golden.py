"""Against what transformers computes from the same checkpoints in fp32. Limits are those of tests/golden/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reference_data import MAX_DIFFERENCE, MEAN_DIFFERENCE, MODELS, STATE_DIFFERENCE, Golden

from perilune import LLM, SamplingParams
from perilune.cache.geometry import pages_for
from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.models.spec import MlaSpec
from perilune.nn.batch import Piece
from perilune.ops.kda import reference as kda

CONTEXT = 512
GREEDY = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True, logprobs=5)


@pytest.fixture(scope="module", params=MODELS)
def reference(request: pytest.FixtureRequest, golden: Path) -> Golden:
    return Golden.load(golden / request.param)


@pytest.fixture(scope="module")
def llm(reference: Golden) -> Iterator[LLM]:
    with LLM(str(reference.path), dtype="float32", max_context=CONTEXT, max_running=4) as model:
        yield model


def close(ours: torch.Tensor, theirs: torch.Tensor, limit: float) -> bool:
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) < limit


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


def test_log_probabilities_of_a_greedy_continuation(llm: LLM, reference: Golden) -> None:
    expected = reference.get(17, "greedy_logits").log_softmax(-1)
    [answer] = llm.generate([reference.prompt(17)], GREEDY)
    assert answer.logprobs is not None
    for row, token in zip(expected, answer.logprobs, strict=True):
        assert abs(token.logprob - float(row[token.token_id])) < MAX_DIFFERENCE
        for candidate, logprob in token.top:
            assert abs(logprob - float(row[candidate])) < MAX_DIFFERENCE
        assert token.top[0][0] == int(row.argmax())


def test_bfloat16_stays_within_its_rounding(reference: Golden) -> None:
    """Per position, relative to the fp32 logits: about 2.5 % (an expert that flips moves one position further)."""
    with LLM(str(reference.path), dtype="bfloat16", max_context=CONTEXT, max_running=1) as rounded:
        for length in (17, 130):
            expected, ours = reference.get(length, "logits"), rounded.logits(reference.prompt(length))
            relative = (ours - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert relative.median() < 0.04, length
            assert relative.mean() < 0.06, length


@pytest.fixture(scope="module")
def core(reference: Golden) -> EngineCore:
    config = EngineConfig.of(str(reference.path), dtype="float32", max_context=CONTEXT, max_running=1)
    return EngineCore(config, reference.path)


@pytest.fixture(scope="module")
def tables(core: EngineCore) -> list[int]:
    """Page ids of the only sequence, out of order so that a table that is ignored shows."""
    return list(reversed(range(core.plan.cache.pages)))


def prefill(core: EngineCore, tables: list[int], prompt: tuple[int, ...]) -> None:
    core.runner.clear(0)
    core.runner.run([Piece(prompt, 0, 0, tables[: pages_for(len(prompt))], "prefill")])


def test_states_and_windows_after_every_prompt(core: EngineCore, tables: list[int], reference: Golden) -> None:
    checked = 0
    for length in reference.lengths if core.spec.kda_layers else ():
        prefill(core, tables, reference.prompt(length))
        for layer in reference.layers_with(length, "kda_state"):
            state, window = core.runner.arenas.state(layer)[0], core.runner.arenas.conv(layer)[0]
            expected = reference.get(length, f"layer_{layer}.conv_state")[:, 1:]
            assert close(state, reference.get(length, f"layer_{layer}.kda_state"), STATE_DIFFERENCE), (length, layer)
            assert close(window.flatten(0, 2), expected, MAX_DIFFERENCE), (length, layer)
            checked += 1
    assert checked == len(core.spec.kda_layers) * len(reference.lengths)


def test_latents_in_the_pages(core: EngineCore, tables: list[int], reference: Golden) -> None:
    checked = 0
    for length in reference.lengths:
        prefill(core, tables, reference.prompt(length))
        for layer in reference.layers_with(length, "mla_latent"):
            pages = core.runner.arenas.pages(layer)[tables[: pages_for(length)]].flatten(0, 1)[:length]
            mixer = core.spec.layers[layer].mixer
            assert isinstance(mixer, MlaSpec)
            latent, k_pe = pages.split([mixer.latent_rank, mixer.rope_dim], dim=-1)
            if mixer.rope is not None:  # theirs: first halves of the pairs, then second halves
                k_pe = torch.cat([k_pe[:, 0::2], k_pe[:, 1::2]], dim=-1)
            assert close(latent, reference.get(length, f"layer_{layer}.mla_latent"), MAX_DIFFERENCE), (length, layer)
            assert close(k_pe, reference.get(length, f"layer_{layer}.mla_k_pe"), MAX_DIFFERENCE), (length, layer)
            checked += 1
    assert checked >= len(core.spec.mla_layers)


@pytest.mark.parametrize("length", [17, 65])
def test_recurrence_of_layer_0_in_both_forms(golden: Path, length: int) -> None:
    reference = Golden.load(golden / "kimi_linear")
    q, k, v, g = (reference.get(length, f"layer_0.kda.{name}").transpose(0, 1) for name in ("q", "k", "v", "g"))
    beta = reference.get(length, "layer_0.kda.beta").transpose(0, 1)
    q, k = kda.normalise_qk(q, k)
    start = torch.zeros(q.shape[0], q.shape[-1], v.shape[-1])
    expected = reference.get(length, "layer_0.kda.core_out").transpose(0, 1)
    state = reference.get(length, "layer_0.kda_state")
    o, after = kda.recurrent_kda(q, k, v, g, beta, start)
    assert close(o, expected, 1e-5)
    assert close(after, state, 1e-5)
    o, states = kda.chunk_kda(q, k, v, g, beta, start)
    assert close(o, expected, 1e-5)
    assert close(states[-1], state, 1e-5)


def test_the_golden_prompts_reach_decays_that_overflow_when_inverted(golden: Path) -> None:
    """The reason for the hierarchical form: exp(195) is infinite in fp32."""
    g = Golden.load(golden / "kimi_linear").get(65, "layer_0.kda.g")
    assert float(g[:64].sum(0).min()) < -100
    assert torch.isinf((-g[:64].sum(0)).exp()).any()
