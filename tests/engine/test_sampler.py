"""One sequence from logits to tokens: what each field of SamplingParams does, and what the report says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from perilune.engine.request import SamplingParams
from perilune.engine.sampler import Sampler

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
