"""What the router reads of a request: prompts as chains, private fields taken out, and why a request stays whole."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.errors import RequestError
from perilune.pd.ticket import prompt_digest
from perilune.router.ask import public, read_ask, reported_tokens
from perilune.router.events import Events, prompt_tokens
from perilune.router.prefixes import BLOCK_BYTES, PrefixMap, chain_of_ids, chain_of_text

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "more", "why"),
    [
        (CHAT, {}, ""),
        (CHAT, {"n": 1, "max_tokens": 1}, ""),
        (CHAT, {"n": 2}, "n"),
        (CHAT, {"prompt_logprobs": 0}, "prompt_logprobs"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        (TEXT, {"prompt": "a", "echo": True, "logprobs": 0}, "prompt_logprobs"),
        (TEXT, {"prompt": "a", "echo": True}, ""),
        (TEXT, {"prompt": ["a"]}, "prompts"),
        (TEXT, {"prompt": [[1, 2]]}, "prompts"),
        (TEXT, {"prompt": [1, 2]}, ""),
        ("/v1/responses", {"input": "a"}, "endpoint"),
    ],
)
def test_a_request_that_cannot_be_handed_over_says_why(path: str, more: dict[str, Any], why: str) -> None:
    assert read_ask(path, more).stay == why


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
KEYS = st.sampled_from(
    ["kv_transfer_params", "bootstrap_room", "ticket", "vllm_xargs", "messages", "prompt", "tools", "n", "input", "x"]
)


@given(body=st.dictionaries(KEYS, JSON))
def test_any_body_is_read_and_nothing_private_is_left(body: dict[str, Any]) -> None:
    ask = read_ask(CHAT, body)
    assert not any(name.startswith("bootstrap_") or name in ("kv_transfer_params", "ticket") for name in ask.body)
    assert {name: value for name, value in body.items() if name in ask.body and name != "vllm_xargs"} == {
        name: value for name, value in ask.body.items() if name != "vllm_xargs"
    }
    assert ask.tokens(4.0) >= 0


@pytest.mark.parametrize("body", [[], "x", 5, None, {"model": 5}])
def test_what_is_no_request_is_refused(body: Any) -> None:
    with pytest.raises(RequestError):
        read_ask(CHAT, body)


@given(st.lists(st.integers(0, 3), max_size=400), st.lists(st.integers(0, 3), max_size=400))
def test_chains_agree_exactly_as_far_as_whole_blocks_do(one: list[int], two: list[int]) -> None:
    seen = PrefixMap()
    seen.learn(chain_of_ids(one))
    shared = 0
    while shared < min(len(one), len(two)) and one[shared] == two[shared]:
        shared += 1
    assert seen.match(chain_of_ids(two)) == shared // 64


def test_a_chain_is_forgotten_from_its_end_and_the_longest_unused_first() -> None:
    old, new = chain_of_text(b"a" * BLOCK_BYTES * 4), chain_of_text(b"b" * BLOCK_BYTES * 4)
    seen = PrefixMap(kept=6)
    seen.learn(old)
    seen.learn(new)
    assert len(seen) == 6
    assert (seen.match(old), seen.match(new)) == (2, 4)


def test_another_system_prompt_is_another_beginning() -> None:
    def chain(system: str) -> tuple[bytes, ...]:
        said = [{"role": "system", "content": system}, {"role": "user", "content": "long " * 500}]
        return read_ask(CHAT, {"messages": said}).chain

    assert not set(chain("be kind")) & set(chain("be short"))
    assert chain("be kind") == chain("be kind")


def test_prefixes_that_an_engine_reports_are_found_by_token_ids() -> None:
    ids = list(range(300))
    listed = [(n, prompt_digest(ids[:n]).hex()) for n in (64, 192)] + [(256, "00" * 16), (400, "11" * 16)]
    assert reported_tokens(read_ask(TEXT, {"prompt": ids}), listed, prompt_digest) == 192
    assert reported_tokens(read_ask(TEXT, {"prompt": "text"}), listed, prompt_digest) == 0


def test_only_the_routers_part_of_an_answer_is_kept_back() -> None:
    said = {"choices": [{"text": "kv_transfer_params é"}], "usage": {"prompt_tokens": 3}}
    assert json.loads(public(json.dumps({**said, "kv_transfer_params": {"a": 1}}).encode())) == said
    raw = b'{"a":  1.0}'
    assert public(raw) is raw


EVENT = b'data: {"choices":[{"delta":{"content":"\\ndata: [DONE]\\n\\n"}}]}\n\n'


@given(st.lists(st.integers(0, 200), max_size=8))
def test_events_come_whole_and_unchanged_wherever_they_were_cut(cuts: list[int]) -> None:
    text = b": hello\r\n\r\n" + EVENT + b'data: {"usage": {"prompt_tokens": 12}}\n\n' + b"data: [DONE]\n\n"
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    events, got = Events(), []
    for start, end in pairwise(places):
        got.append(events.feed(text[start:end]))
        assert not got[-1] or got[-1].endswith((b"\n\n", b"\r\n\r\n"))
        assert events.ended == ("ok" if end == len(text) else "")
    assert b"".join(got) == text
    assert prompt_tokens(events.latest) == 12


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        (b"data: [DONE]\n\n", "ok"),
        (b"data:[DONE]\n\n", "ok"),
        (b'data: {"error": {"message": "x"}}\n\n', "error"),
        (b'data: {"object":"error","message":"x","code":400}\n\n', "error"),
        (b'event: response.completed\ndata: {"type":"response.completed","response":{"error":null}}\n\n', "ok"),
        (b'event: error\ndata: {"type":"error","message":"x"}\n\n', "error"),
        (b'data: {"choices":[{"delta":{"content":"the \\"error\\" is"}}]}\n\n', ""),
        (EVENT, ""),
    ],
)
def test_the_end_of_a_stream_is_known_in_every_form(last: bytes, ended: str) -> None:
    events = Events()
    events.feed(last)
    assert events.ended == ended
