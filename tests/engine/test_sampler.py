"""One sequence from logits to tokens: what each field of SamplingParams does, and what the report says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from perilune.engine.grammar import unpacked
from perilune.engine.request import SamplingParams
from perilune.engine.sampler import Sampler, sample_rows
from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Gpu
from perilune.ops.sample.reference import SAMPLING
from perilune.ops.sample.triton import sampling

VOCAB = 10
STOP = frozenset({8, 9})


def sampler(prompt: tuple[int, ...] = (0,), *, seed: int = 1, stream: int = 0, **fields: object) -> Sampler:
    params = SamplingParams(**fields)
    return Sampler(params, prompt, VOCAB, seed=seed, stream=stream, stop_ids=STOP)


def falling(*best: int) -> Tensor:
    """Logits whose order starts with `best`."""
    logits = torch.linspace(0, -1, VOCAB)
    for place, token in enumerate(best):
        logits[token] = 5.0 - place
    return logits


class Only:
    """A constraint that allows a fixed set per position."""

    def __init__(self, *allowed: set[int]) -> None:
        self.allowed, self.accepted = list(allowed), []

    def mask(self, logits: Tensor) -> Tensor:
        out = torch.full_like(logits, -math.inf)
        ids = list(self.allowed[len(self.accepted)])
        out[ids] = logits[ids]
        return out

    def accept(self, token: int) -> None:
        assert token in self.allowed[len(self.accepted)]
        self.accepted.append(token)

    @property
    def finished(self) -> bool:
        return len(self.accepted) == len(self.allowed)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-6])
def test_no_temperature_takes_the_best(temperature: float) -> None:
    assert sampler(temperature=temperature).sample(falling(4, 2)).token_id == 4


def test_a_tiny_top_p_or_top_k_of_one_is_greedy_too() -> None:
    for fields in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        one = sampler(temperature=5.0, **fields)
        assert {one.sample(falling(4, 2)).token_id for _ in range(20)} == {4}


def test_draws_depend_on_seed_stream_and_place_only() -> None:
    flat = torch.zeros(VOCAB)

    def draws(seed: int, stream: int, noise: int = 0) -> list[int]:
        one = sampler(seed=seed, stream=stream)
        found = []
        for _ in range(12):
            torch.rand(noise)
            found.append(one.sample(flat).token_id)
        return found

    assert draws(5, 0) == draws(5, 0, noise=3)
    assert draws(5, 0) != draws(6, 0)
    assert draws(5, 0) != draws(5, 1)


def test_repetition_counts_prompt_and_answer_presence_only_the_answer() -> None:
    logits = torch.full((VOCAB,), -5.0)
    logits[3], logits[4] = 2.0, 1.5
    assert sampler((3,), temperature=0, repetition_penalty=2.0).sample(logits).token_id == 4
    presence = sampler((3,), temperature=0, presence_penalty=1.0)
    assert [presence.sample(logits).token_id for _ in range(3)] == [3, 4, 3]


def test_frequency_grows_with_every_use() -> None:
    logits = torch.full((VOCAB,), -50.0)
    logits[3], logits[4] = 2.0, 0.1
    one = sampler(temperature=0, frequency_penalty=1.0)
    assert [one.sample(logits).token_id for _ in range(5)] == [3, 3, 4, 3, 4]


def test_a_bias_moves_one_token_and_not_the_report() -> None:
    logits = falling(4, 2)
    token = sampler(temperature=0, logit_bias={2: 3.0, 4: -100.0}, logprobs=1).sample(logits)
    assert token.token_id == 2
    assert token.logprob == float(logits.log_softmax(-1)[2])
    assert token.top[0][0] == 4


def test_logits_given_are_never_changed() -> None:
    logits = falling(4, 2)
    before = logits.clone()
    everything = sampler(
        temperature=0.7, top_k=3, top_p=0.9, min_p=0.1, logit_bias={1: 1.0}, repetition_penalty=1.2,
        presence_penalty=0.3, frequency_penalty=0.2, min_tokens=2, logprobs=3,
    )  # fmt: skip
    everything.sample(logits)
    assert torch.equal(logits, before)


def test_no_stop_token_before_min_tokens() -> None:
    one = sampler(temperature=0, min_tokens=2)
    assert [one.sample(falling(8, 9, 3)).token_id for _ in range(4)] == [3, 3, 8, 8]


def test_a_grammar_masks_and_advances() -> None:
    one = sampler(temperature=0)
    one.constraint = grammar = Only({2, 3}, {1})
    assert [one.sample(falling(4, 2)).token_id for _ in range(2)] == [2, 1]
    assert grammar.finished


def test_a_complete_grammar_ends_the_answer_even_before_min_tokens() -> None:
    one = sampler(temperature=0, min_tokens=5)
    one.constraint = Only({2, 8}, {8})
    assert [one.sample(falling(8)).token_id for _ in range(2)] == [2, 8]


def test_a_report_has_as_many_alternatives_as_asked_for_best_first() -> None:
    logits = falling(4, 2, 7)
    scores = logits.log_softmax(-1)
    assert sampler(temperature=0).sample(logits).top == ()
    none = sampler(temperature=0, logprobs=0).sample(logits)
    assert (none.top, none.logprob) == ((), float(scores[4]))
    three = sampler(temperature=0, logprobs=3).sample(logits).top
    assert three == tuple((token, float(scores[token])) for token in (4, 2, 7))


def test_a_row_of_nan_is_an_error_and_not_a_token() -> None:
    with pytest.raises(IndexError):
        sampler().sample(torch.full((VOCAB,), math.nan))


def test_rows_sampled_together_on_a_gpus_kernels_are_those_sampled_alone() -> None:
    """Greedy, drawn, penalised, ruled and failing rows in one step, for some steps."""
    settings: list[dict[str, object]] = [
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
        {"temperature": 1.3, "top_k": 4, "logit_bias": {3: 2.0}},
        {"temperature": 1.0, "min_p": 0.05, "min_tokens": 3},
        {"temperature": 1.0},
    ]
    g = torch.Generator().manual_seed(3)
    kernels = sampling(Gpu(ARCHES["gfx1151"]))
    here, there = ([sampler(seed=i, **fields) for i, fields in enumerate(settings)] for _ in range(2))
    for _ in range(5):
        rows = list(torch.randn(len(settings), VOCAB, generator=g) * 2)
        rows[4] = torch.full((VOCAB,), math.nan)
        alone, together = sample_rows(here, rows, SAMPLING), sample_rows(there, rows, kernels)
        assert alone[:4] == together[:4]
        assert isinstance(alone[4], IndexError)
        assert isinstance(together[4], IndexError)


def test_one_sequences_error_is_no_others() -> None:
    broken = sampler(temperature=0)
    broken.constraint = Only()
    found = sample_rows(
        [sampler(temperature=0), broken, sampler(temperature=0)], [falling(i) for i in range(3)], SAMPLING
    )
    assert [getattr(token, "token_id", None) for token in found] == [0, None, 2]


def test_a_grammars_bits_mean_the_same_on_a_device() -> None:
    allowed = torch.rand(75, generator=torch.Generator().manual_seed(1)) < 0.5
    bits = torch.nn.functional.pad(allowed, (0, 21)).view(3, 32).long() << torch.arange(32)
    words = bits.sum(-1)
    assert torch.equal(unpacked(torch.where(words >= 2**31, words - 2**32, words).int(), 75), allowed)
