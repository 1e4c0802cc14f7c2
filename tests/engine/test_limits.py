"""What a request may ask for: each refusal is typed, names the field and says what helps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from perilune.cache.budget import CachePlan
from perilune.engine.config import EnginePlan
from perilune.engine.limits import Limits
from perilune.engine.request import SamplingParams
from perilune.errors import ContextLengthError, RequestError
from perilune.models.spec import ModelSpec

LIMITS = Limits(vocab=100, context=64)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "room"),
    [(1, 16, 16), (1, None, 63), (1, 1000, 63), (48, 16, 16), (49, 16, 15), (63, 16, 1), (63, None, 1)],
)
def test_an_answer_gets_what_is_left_of_the_context(prompt: int, max_tokens: int | None, room: int) -> None:
    assert LIMITS.check([1] * prompt, SamplingParams(max_tokens=max_tokens)) == room


@pytest.mark.parametrize("length", [64, 65, 1000])
def test_a_prompt_that_leaves_no_room_says_both_numbers_and_the_flag(length: int) -> None:
    with pytest.raises(ContextLengthError, match=rf"{length} tokens.*64.*--max-context") as caught:
        LIMITS.check([1] * length, SamplingParams())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", [[], [100], [5, -1], [2**63]])
def test_ids_outside_the_vocabulary_and_empty_prompts(prompt: list[int]) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check(prompt, SamplingParams())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("fields", [{"logit_bias": {100: 1.0}}, {"logit_bias": {-1: 1.0}}, {"stop_token_ids": (100,)}])
def test_ids_in_other_fields_are_checked_too(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        LIMITS.check([1], SamplingParams(**fields))
    assert caught.value.param == next(iter(fields))


def test_a_small_pool_is_a_small_context() -> None:
    """What could never fit alone is refused at the door, so admission cannot wait for ever."""
    spec = ModelSpec("kimi_linear", "K", (), 10, 8, 1e-5, 4096, "float32", ())
    cache = CachePlan(3, 1, 1, 1, 3, 1, 4, 192, ())
    assert Limits.of(spec, EnginePlan("float32", 4096, cache, ())).context == 192
    roomy = dataclasses.replace(cache, pages=100)
    assert Limits.of(spec, EnginePlan("float32", 100, roomy, ())).context == 100


BAD_FIELDS: list[tuple[str, Any]] = [
    ("n", 0), ("n", 129), ("n", 1.5), ("n", None), ("max_tokens", -1), ("max_tokens", "5"),
    ("min_tokens", -1), ("min_tokens", 0.5), ("temperature", -0.1), ("temperature", 101), ("temperature", float("nan")),
    ("temperature", "hot"), ("top_p", 0), ("top_p", 1.01), ("top_p", float("nan")), ("top_p", "x"), ("top_k", -2),
    ("top_k", 1.5), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0), ("repetition_penalty", 11),
    ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("seed", 2**64), ("seed", -(2**63) - 1), ("seed", 1.0),
    ("stop", ("",)), ("logprobs", -1), ("logprobs", 21), ("logprobs", True), ("logit_bias", {1: float("nan")}),
    ("logit_bias", {1: -101}), ("logit_bias", {1: float("-inf")}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_sampling_value_out_of_range_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name in caught.value.what or "stop string" in caught.value.what


def test_the_edges_of_every_range_are_inside() -> None:
    SamplingParams(n=128, max_tokens=1, temperature=100, top_p=1e-6, top_k=-1, min_p=1.0, repetition_penalty=10)
    SamplingParams(seed=2**64 - 1, logprobs=20, presence_penalty=-2, logit_bias={1: 100}, stop="one", max_tokens=None)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"'temprature'.*'temperature'") as caught:
        SamplingParams(temprature=1)
    assert caught.value.param == "temprature"


def test_one_stop_string_is_a_tuple_of_one() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop=None).stop == ()
