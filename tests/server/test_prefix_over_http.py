"""The prefix cache as a client sees it: cached tokens in every usage, numbers in /metrics, a flag to turn it off."""

from __future__ import annotations

from pathlib import Path

import httpx
import live
import pytest

SYSTEM = "You answer with care. " * 40


def ask(client: httpx.Client, path: str, tail: str) -> tuple[int, int]:
    """(prompt tokens, cached tokens) of one answer."""
    asked: dict[str, object] = {"model": live.MODEL, "temperature": 0}
    if path == "/v1/responses":
        asked |= {"input": SYSTEM + tail, "max_output_tokens": 2}
        usage = client.post(path, json=asked).raise_for_status().json()["usage"]
        return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]
    asked |= {"max_tokens": 2}
    if path == "/v1/completions":
        asked["prompt"] = SYSTEM + tail
    else:
        asked["messages"] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": tail}]
    usage = client.post(path, json=asked).raise_for_status().json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_usage_says_how_much_was_cached_and_metrics_say_why(
    server: live.LiveServer, http: httpx.Client, path: str
) -> None:
    ask(http, path, f"first of {path}")
    names = ("prefix_state_matched_tokens_total", "prefix_lookups_hit_total")
    before = [server.metric(f"perilune_engine_{name}") for name in names]
    counted = server.metric("perilune_cached_prompt_tokens_total")
    prompt, cached = ask(http, path, f"first of {path}")
    assert cached == (prompt - 1) // 64 * 64
    assert 0 < cached < prompt
    after = [server.metric(f"perilune_engine_{name}") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [cached, 1]
    assert server.metric("perilune_cached_prompt_tokens_total") - counted == cached
    assert ask(http, path, f"and another tail for {path}")[1] > 0
    server.wait_idle()
    assert server.metric("perilune_engine_pages_cached") > 0
    assert server.metric("perilune_engine_snapshots") > 0


def test_choices_of_one_prompt_do_not_count_each_others_work_as_cached(http: httpx.Client) -> None:
    asked = {"model": live.MODEL, "prompt": "Said only here. " * 30, "max_tokens": 2, "n": 3}
    usage = http.post("/v1/completions", json=asked).raise_for_status().json()["usage"]
    assert usage["prompt_tokens"] > 64
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    server = live.start(tmp_path, "--no-enable-prefix-caching")
    try:
        with server.client() as client:
            assert [ask(client, "/v1/completions", "x")[1] for _ in range(2)] == [0, 0]
        assert server.metric("perilune_engine_pages_cached") == 0
    finally:
        server.stop()
