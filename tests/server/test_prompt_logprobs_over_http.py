"""What evaluation tools read: log probabilities of the prompt, in OpenAI's form with `echo` and in vLLM's."""

from __future__ import annotations

import json

import httpx
import openai as sdk
import pytest
from live import CONTEXT, MODEL, LiveServer
from openai import OpenAI

TEXT = "A page holds 64 tokens: é, 漢字 and 🦊 are cut into bytes."


def complete(http: httpx.Client, **fields: object) -> dict:
    return http.post("/v1/completions", json={"model": MODEL, "temperature": 0} | fields).raise_for_status().json()


def ids_of(http: httpx.Client, text: str) -> list[int]:
    return http.post("/tokenize", json={"prompt": text}).raise_for_status().json()["tokens"]


def test_echo_with_no_new_tokens_is_the_prompt_and_what_was_thought_of_it(http: httpx.Client) -> None:
    answer = complete(http, prompt=TEXT, max_tokens=0, echo=True, logprobs=2)
    [choice] = answer["choices"]
    found, ids = choice["logprobs"], ids_of(http, TEXT)
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert [len(found[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [len(ids)] * 4
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    for token, logprob, top in list(
        zip(*(found[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
    )[1:]:
        assert logprob <= 0
        assert 2 <= len(top) <= 3
        assert max(top.values()) >= top[token] >= logprob  # one name may stand for several cut characters


@pytest.mark.parametrize("as_ids", [True, False], ids=["ids", "text"])
def test_offsets_point_at_the_tokens_in_the_text(http: httpx.Client, as_ids: bool) -> None:
    prompt = ids_of(http, TEXT) if as_ids else TEXT
    asked = {"max_tokens": 8, "echo": True, "logprobs": 1, "ignore_eos": True, "skip_special_tokens": False}
    [choice] = complete(http, prompt=prompt, **asked)["choices"]
    assert choice["text"].startswith(TEXT)
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(ids_of(http, TEXT)) + 8
    assert found["text_offset"] == sorted(found["text_offset"])
    for token, at in zip(found["tokens"], found["text_offset"], strict=True):
        if "\ufffd" not in token:
            assert choice["text"][at : at + len(token)] == token


def test_scores_of_a_continuation_as_an_evaluation_harness_sums_them(http: httpx.Client) -> None:
    """The greedy continuation is recognised as such, another is not, and both score what generation gave them."""
    context = ids_of(http, "What is a page?")
    [made] = complete(http, prompt=context, max_tokens=4, logprobs=1, ignore_eos=True, return_token_ids=True)["choices"]
    other = [(token + 1) % 500 for token in made["token_ids"]]
    prompts = [context + made["token_ids"], context + other]
    answer = complete(http, prompt=prompts, max_tokens=1, logprobs=1, echo=True)
    greedy = []
    for choice in answer["choices"]:
        own = choice["logprobs"]["token_logprobs"][len(context) : -1]
        top = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert len(own) == 4
        greedy.append(all(value == max(best.values()) for value, best in zip(own, top, strict=True)))
        if greedy[-1]:
            assert sum(own) == pytest.approx(sum(made["logprobs"]["token_logprobs"]), abs=0.1)  # bf16
    assert greedy == [True, False]


def test_a_stream_brings_the_same_echo_in_its_first_chunks(openai: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": ["One two", "Three"], "max_tokens": 3, "temperature": 0, "echo": True, "n": 2}
    asked |= {"logprobs": 1, "extra_body": {"ignore_eos": True}}
    whole = openai.completions.create(**asked).choices
    streamed = [{"text": "", "tokens": [], "token_logprobs": [], "text_offset": []} for _ in range(4)]
    for chunk in openai.completions.create(**asked, stream=True):
        [choice] = chunk.choices
        mine = streamed[choice.index]
        mine["text"] += choice.text
        if choice.logprobs:
            for key in ("tokens", "token_logprobs", "text_offset"):
                mine[key] += getattr(choice.logprobs, key)
    for mine, choice in zip(streamed, whole, strict=True):
        assert mine["text"] == choice.text
        assert all(mine[key] == getattr(choice.logprobs, key) for key in ("tokens", "token_logprobs", "text_offset"))
        assert mine["token_logprobs"][0] is None


def test_vllms_form_names_ranks_in_completions_and_chat(http: httpx.Client) -> None:
    [choice] = complete(http, prompt=TEXT, max_tokens=1, prompt_logprobs=2)["choices"]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 1, "return_token_ids": True}
    told = http.post("/v1/chat/completions", json=chat | {"prompt_logprobs": 2}).raise_for_status().json()
    for ids, entries in (
        (ids_of(http, TEXT), choice["prompt_logprobs"]),
        (told["prompt_token_ids"], told["prompt_logprobs"]),
    ):
        assert len(entries) == len(ids)
        assert entries[0] is None
        for token, entry in zip(ids[1:], entries[1:], strict=True):
            ranked = sorted(entry.values(), key=lambda known: known["rank"])
            assert [known["rank"] for known in ranked[:2]] == [1, 2]
            assert ranked == sorted(ranked, key=lambda known: -known["logprob"])
            assert len(entry) == (2 if entry[str(token)]["rank"] <= 2 else 3)
            assert all(set(known) == {"logprob", "rank", "decoded_token"} for known in entry.values())
    assert "prompt_logprobs" not in http.post("/v1/chat/completions", json=chat).json()
    assert "prompt_logprobs" not in complete(http, prompt=TEXT, max_tokens=1)["choices"][0]


def test_both_forms_at_once_each_with_its_own_number_of_alternatives(http: httpx.Client) -> None:
    [choice] = complete(http, prompt="One two", max_tokens=0, echo=True, logprobs=0, prompt_logprobs=4)["choices"]
    assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [1] * (len(choice["prompt_logprobs"]) - 1)
    for entry, own in zip(choice["prompt_logprobs"][1:], choice["logprobs"]["token_logprobs"][1:], strict=True):
        assert len(entry) >= 4
        assert own in [known["logprob"] for known in entry.values()]


def test_a_cached_prompt_is_computed_again_and_says_so(http: httpx.Client, server: LiveServer) -> None:
    prompt = "The very same words, again and again. " * 20
    for _ in range(2):
        complete(http, prompt=prompt, max_tokens=1)
    warm = complete(http, prompt=prompt, max_tokens=1)
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    scored = complete(http, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    assert scored["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert None not in scored["choices"][0]["logprobs"]["token_logprobs"][1:]
    server.wait_idle()


def test_max_tokens_0_alone_is_an_empty_answer_streamed_or_not(http: httpx.Client) -> None:
    [choice] = complete(http, prompt="One", max_tokens=0, logprobs=1)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == ("", "length", [])
    asked = {"model": MODEL, "prompt": "One", "max_tokens": 0, "stream": True}
    lines = http.post("/v1/completions", json=asked).raise_for_status().text.split("\n\n")
    [chunk] = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert chunk["choices"][0]["finish_reason"] == "length"
    assert "data: [DONE]" in lines


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "greater than or equal to 0"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "do not come in a stream"),
    ],
)
def test_what_cannot_be_is_a_400(openai: OpenAI, fields: dict, param: str, message: str) -> None:
    with pytest.raises(sdk.BadRequestError, match=message) as caught:
        openai.completions.create(model=MODEL, prompt="One", extra_body=fields)
    assert caught.value.param == param
    with pytest.raises(sdk.BadRequestError, match=message):
        openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "One"}], extra_body=fields)


def test_the_longest_prompt_that_has_room_is_scored(http: httpx.Client) -> None:
    ids = (ids_of(http, TEXT) * CONTEXT)[: CONTEXT - 1]
    [choice] = complete(http, prompt=ids, max_tokens=0, echo=True, logprobs=0)["choices"]
    assert len(choice["logprobs"]["tokens"]) == CONTEXT - 1
