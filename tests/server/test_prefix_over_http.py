"""The prefix cache as a client sees it: cached tokens in every usage, numbers in /metrics, a flag to turn it off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


def test_a_server_killed_and_started_again_finds_its_prompts_on_disk(tmp_path: Path) -> None:
    flags = ("--dtype", "float32", "--cache-dir", str(tmp_path / "kept"), "--cache-disk-bytes", "64MiB")
    first = live.start(tmp_path, *flags)
    with first.client() as client:
        prompt, cached = ask(client, "/v1/completions", "x")
        assert cached == 0
    end, before = time.monotonic() + 60, -1.0
    while not 0 < before == first.metric("perilune_engine_disk_written_bytes_total"):
        assert time.monotonic() < end, "nothing was written in an idle minute"
        before = first.metric("perilune_engine_disk_written_bytes_total")
        time.sleep(1)
    os.kill(first.engine_pid(), signal.SIGKILL)
    assert first.process.wait(30) == 1
    second = live.start(tmp_path, *flags)
    try:
        with second.client() as client:
            assert ask(client, "/v1/completions", "x") == (prompt, (prompt - 1) // 64 * 64)
        assert second.metric("perilune_engine_tier_loads_total") == 1
    finally:
        second.stop()
    listed = subprocess.run(
        [sys.executable, "-m", "perilune", "cache", "verify", "--cache-dir", str(tmp_path / "kept")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "0 were broken" in listed.stdout


def chat(client: httpx.Client, messages: list[Any], **more: Any) -> tuple[int, int]:
    """(prompt tokens, cached tokens) of one answer."""
    asked = {"model": live.MODEL, "temperature": 0, "max_tokens": 1, "messages": messages, **more}
    usage = client.post("/v1/chat/completions", json=asked).raise_for_status().json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("where", ["message", "part", "nowhere"])
def test_a_marked_beginning_is_reused_at_the_second_request_whatever_follows(
    server: live.LiveServer, http: httpx.Client, where: str
) -> None:
    system = f"Rules of {where}. " + "You answer with care. " * 25
    mark = {"cache_control": {"type": "ephemeral"}}
    said: dict[str, Any] = {"role": "system", "content": system}
    if where == "message":
        said |= mark
    if where == "part":
        said["content"] = [{"type": "text", "text": system, **mark}]
    counted = server.metric("perilune_cache_marks_total", outcome="placed")
    taken = server.metric("perilune_engine_prefix_snapshots_mark_total")
    tails = [f"{name} " * 150 for name in ("alpha", "bravo", "charlie")]
    assert chat(http, [said, {"role": "user", "content": tails[0]}])[1] == 0
    head = chat(http, [{"role": "system", "content": system}, {"role": "user", "content": "x"}])[0]
    reused = [chat(http, [said, {"role": "user", "content": tail}])[1] for tail in tails[1:]]
    marked = where != "nowhere"
    assert server.metric("perilune_cache_marks_total", outcome="placed") - counted == 3 * marked
    assert server.metric("perilune_engine_prefix_snapshots_mark_total") - taken == marked
    if marked:
        assert head - 128 < reused[0] == reused[1] < head


def test_a_mark_that_is_not_understood_is_an_error_that_names_it(http: httpx.Client) -> None:
    said = [{"role": "user", "content": "x", "cache_control": {"type": "eternal"}}]
    answer = http.post("/v1/chat/completions", json={"model": live.MODEL, "messages": said})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].cache_control"


def test_isolated_keys_share_nothing_in_memory_or_on_disk(tmp_path: Path) -> None:
    flags = ("--cache-isolation", "key", "--cache-dir", str(tmp_path / "kept"), "--dtype", "float32")

    def cached(server: live.LiveServer, path: str, key: str) -> int:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            return ask(client, path, "x")[1]

    first = live.start(tmp_path, *flags)
    try:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
            assert cached(first, path, live.KEY) == 0
            assert cached(first, path, live.KEY) > 0
            assert cached(first, path, live.SECOND_KEY) == 0
    finally:
        first.stop()
    second = live.start(tmp_path, *flags, "--api-key", "third-secret")
    try:
        reused = [cached(second, "/v1/completions", key) for key in ("third-secret", live.KEY, live.SECOND_KEY)]
        assert reused[0] == 0
        assert reused[1] == reused[2] > 0
    finally:
        second.stop()


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    server = live.start(tmp_path, "--no-enable-prefix-caching")
    try:
        with server.client() as client:
            assert [ask(client, "/v1/completions", "x")[1] for _ in range(2)] == [0, 0]
        assert server.metric("perilune_engine_pages_cached") == 0
    finally:
        server.stop()
