"""Two servers with roles, spoken to as a router does (docs/pd.md), and by those who are none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import live
import pytest
from live import MODEL, LiveServer

from perilune.pd.keys import KEY_VARIABLE, STAMP_HEADER, ClusterKey

SECRET = "a key that only tests know"
ROUTER = ClusterKey(SECRET.encode())
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "Tell me about the moon and its tides. " * 8}],
    "temperature": 0, "max_tokens": 12, "logprobs": True, "top_logprobs": 2,
}  # fmt: skip
LEG1 = {"do_remote_decode": True}


def engine(folder: Path, role: str, *flags: str, secret: str = SECRET) -> LiveServer:
    folder.mkdir()
    common = ("--dtype", "float32", "--pd-transports", "local,tcp")
    return live.start(folder, "--role", role, *common, *flags, variables={KEY_VARIABLE: secret})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, LiveServer]]:
    folder = tmp_path_factory.mktemp("pair")
    p = engine(folder / "p", "prefill", "--pd-stream", "--prefill-chunk", "64")
    d = engine(folder / "d", "decode")
    yield p, d
    assert p.stop() == 0
    assert d.stop() == 0


def post(server: LiveServer, path: str, body: dict[str, Any], key: ClusterKey | None = ROUTER) -> httpx.Response:
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers[STAMP_HEADER] = key.stamp("POST", path, content)
    return httpx.post(server.url + path, content=content, headers=headers, timeout=60)


def status(server: LiveServer) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/pd/status", headers={STAMP_HEADER: ROUTER.stamp("GET", "/pd/status")})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def ticket(p: LiveServer, path: str = CHAT, body: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    answer = post(p, path, {**(body or ASK), "kv_transfer_params": {**LEG1, **more}})
    assert answer.status_code == 200, answer.text
    found = answer.json()["kv_transfer_params"]
    assert isinstance(found, dict)
    return found


def said(answer: dict[str, Any]) -> Any:
    """What a client reads: everything but names, times, and how much of the prompt was found in a cache."""
    choice = answer["choices"][0]
    usage = {key: answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")}
    return {key: choice[key] for key in choice if key != "index"}, usage


@pytest.fixture
def together(pair: tuple[LiveServer, LiveServer]) -> dict[str, Any]:
    """What the decode engine says alone."""
    answer = post(pair[1], CHAT, ASK)
    assert answer.status_code == 200, answer.text
    assert "X-Perilune-Prefill" not in answer.headers
    found = answer.json()
    assert isinstance(found, dict)
    return found


def test_two_legs_answer_as_one_engine_does(pair: tuple[LiveServer, LiveServer], together: dict[str, Any]) -> None:
    p, d = pair
    lent = ticket(p)
    assert (lent["do_remote_prefill"], lent["tokens"]) == (True, together["usage"]["prompt_tokens"])
    answer = post(d, CHAT, {**ASK, "kv_transfer_params": lent})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Perilune-Prefill"] == "remote"
    assert said(answer.json()) == said(together)
    p.wait_idle()
    d.wait_idle()


def test_leg_1_has_one_token_and_an_early_one_none(pair: tuple[LiveServer, LiveServer]) -> None:
    p, _ = pair
    whole = post(p, CHAT, {**ASK, "kv_transfer_params": LEG1}).json()
    assert whole["usage"]["completion_tokens"] == 1
    assert len(whole["choices"]) == 1
    early = post(p, CHAT, {**ASK, "kv_transfer_params": {**LEG1, "early": True}}).json()
    assert early["choices"] == []
    for lent in (whole, early):
        assert post(p, "/pd/withdraw", {"ticket": lent["kv_transfer_params"]["ticket"]}).status_code == 204
    p.wait_idle()


def test_a_stream_of_the_decode_engine_is_the_clients(
    pair: tuple[LiveServer, LiveServer], together: dict[str, Any]
) -> None:
    p, d = pair
    lent = ticket(p, early=True)
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}, "kv_transfer_params": lent}
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", STAMP_HEADER: ROUTER.stamp("POST", CHAT, content)}
    text, usage = "", None
    with httpx.stream("POST", d.url + CHAT, content=content, headers=headers, timeout=60) as answer:
        assert answer.headers["X-Perilune-Prefill"] == "remote"
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                usage = chunk.get("usage") or usage
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    assert text == together["choices"][0]["message"]["content"]
    assert usage is not None
    assert usage["completion_tokens"] == together["usage"]["completion_tokens"]


def test_completions_are_handed_over_too(pair: tuple[LiveServer, LiveServer]) -> None:
    p, d = pair
    body = {"prompt": "Once upon a time", "max_tokens": 9, "temperature": 0.8, "seed": 5, "return_token_ids": True}
    alone = post(d, TEXT, body).json()
    answer = post(d, TEXT, {**body, "kv_transfer_params": ticket(p, TEXT, body)})
    assert said(answer.json()) == said(alone)


def test_without_a_seed_both_legs_go_by_the_seed_of_the_first(pair: tuple[LiveServer, LiveServer]) -> None:
    p, d = pair
    body = {"prompt": "Once upon a time", "max_tokens": 9, "temperature": 0.8, "return_token_ids": True}
    first = post(p, TEXT, {**body, "kv_transfer_params": LEG1}).json()
    answer = post(d, TEXT, {**body, "kv_transfer_params": first["kv_transfer_params"]}).json()
    assert answer["choices"][0]["token_ids"][0] == first["choices"][0]["token_ids"][0]


def test_a_grammar_holds_across_the_hand_over(pair: tuple[LiveServer, LiveServer]) -> None:
    p, d = pair
    body = {"prompt": "Yes or no?", "max_tokens": 12, "temperature": 0, "guided_choice": ["perhaps", "certainly"]}
    alone = post(d, TEXT, body).json()
    answer = post(d, TEXT, {**body, "kv_transfer_params": ticket(p, TEXT, body)})
    assert answer.headers["X-Perilune-Prefill"] == "remote"
    assert said(answer.json()) == said(alone)
    assert answer.json()["choices"][0]["text"] in ("perhaps", "certainly")


def test_case_37_only_the_router_may_hand_over(pair: tuple[LiveServer, LiveServer]) -> None:
    p, d = pair
    lent = ticket(p)
    with_ticket = {**ASK, "kv_transfer_params": lent}
    with d.client() as client:  # a client with an API key is still a client
        assert code(client.post(CHAT, json=with_ticket)) == (403, "pd_forbidden")
        assert client.post(CHAT, json={**ASK, "kv_transfer_params": None}).status_code == 200
    assert code(post(d, CHAT, with_ticket, ClusterKey(b"another cluster's key"))) == (403, "pd_forbidden")
    content = json.dumps(with_ticket).encode()
    stamp = ROUTER.stamp("POST", CHAT, json.dumps(ASK).encode())
    changed = httpx.post(d.url + CHAT, content=content, headers={STAMP_HEADER: stamp})
    assert code(changed) == (403, "pd_forbidden")
    assert code(httpx.post(p.url + "/pd/withdraw", json={"ticket": "x"})) == (401, "invalid_api_key")
    assert post(d, CHAT, with_ticket).status_code == 200  # all that has not spent the ticket


def test_case_34_what_cannot_be_handed_over_is_never_text(pair: tuple[LiveServer, LiveServer]) -> None:
    p, d = pair
    lent = ticket(p)
    assert post(d, CHAT, {**ASK, "kv_transfer_params": lent}).status_code == 200
    again = post(d, CHAT, {**ASK, "kv_transfer_params": lent})
    assert code(again) == (400, "pd_ticket")
    other = {**ASK, "messages": [{"role": "user", "content": "something else"}]}
    fresh = ticket(p)
    assert code(post(d, CHAT, {**other, "kv_transfer_params": fresh})) == (400, "pd_ticket")
    assert code(post(d, CHAT, {**ASK, "kv_transfer_params": {**fresh, "ticket": "no"}})) == (400, "pd_ticket")
    fresh = ticket(p)  # the one before was good for one attempt
    assert post(p, "/pd/withdraw", {"ticket": fresh["ticket"]}).status_code == 204
    lost = post(d, CHAT, {**ASK, "kv_transfer_params": {**fresh, "fallback": "error"}})
    assert code(lost) == (503, "pd_lost")
    assert code(post(p, CHAT, ASK)) == (400, "pd_role")
    assert code(post(d, CHAT, {**ASK, "kv_transfer_params": LEG1})) == (400, "pd_role")
    for more in ({"n": 2}, {"prompt_logprobs": 1}):
        assert code(post(p, CHAT, {**ASK, **more, "kv_transfer_params": LEG1})) == (400, "pd_local")
    several = {"prompt": ["a", "b"], "kv_transfer_params": LEG1}
    assert code(post(p, TEXT, several)) == (400, "pd_local")
    assert code(post(p, TEXT, {"prompt": "a", "kv_transfer_params": {**LEG1, "early": 3}})) == (400, "invalid_request")


def test_a_cache_that_was_withdrawn_is_computed_here(
    pair: tuple[LiveServer, LiveServer], together: dict[str, Any]
) -> None:
    p, d = pair
    lent = ticket(p)
    post(p, "/pd/withdraw", {"ticket": lent["ticket"]})
    before = status(d)["totals"]["pd_local_fallbacks_total"]
    answer = post(d, CHAT, {**ASK, "kv_transfer_params": lent})
    assert answer.headers["X-Perilune-Prefill"] == "local"
    assert said(answer.json()) == said(together)
    assert status(d)["totals"]["pd_local_fallbacks_total"] == before + 1
    assert d.metric("perilune_engine_pd_local_fallbacks_total") == before + 1


def test_case_22_a_request_refused_before_admission_frees_its_cache_at_once(
    pair: tuple[LiveServer, LiveServer],
) -> None:
    p, d = pair
    p.wait_idle()
    lent = ticket(p)
    assert status(p)["queue"]["lending"] == 1
    refused = post(d, CHAT, {**ASK, "tools": [{"nonsense": 1}], "kv_transfer_params": lent})
    assert refused.status_code == 400
    until(lambda: status(p)["queue"]["lending"] == 0)  # its lease would last thirty seconds longer
    assert status(p)["totals"]["pd_leases_abandoned_total"] >= 1
    p.wait_idle()


def test_case_21_a_router_that_leaves_leg_1_leaves_nothing_behind(pair: tuple[LiveServer, LiveServer]) -> None:
    p, _ = pair
    body = {"prompt": list(range(20, 900)), "kv_transfer_params": LEG1}
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json", STAMP_HEADER: ROUTER.stamp("POST", TEXT, content)}
    for seconds in (0.02, 0.1, 0.3, 0.6):  # whenever that is: while it is read, computed, sealed or answered
        try:
            taken = httpx.post(p.url + TEXT, content=content, headers=headers, timeout=seconds)
        except httpx.TimeoutException:
            continue
        post(p, "/pd/withdraw", {"ticket": taken.json()["kv_transfer_params"]["ticket"]})
    p.wait_idle()


def test_the_status_says_who_it_is_and_what_is_free(pair: tuple[LiveServer, LiveServer]) -> None:
    p, d = pair
    p.wait_idle()
    lent = ticket(p)
    found, other = status(p), status(d)
    assert (found["role"], other["role"]) == ("prefill", "decode")
    assert found["accepting"] is True
    assert found["models"] == [MODEL]
    assert found["model_digest"] == other["model_digest"]
    assert found["key"] == ROUTER.name
    assert SECRET not in json.dumps(found)
    assert found["engine"] == lent["engine"]
    assert found["slots"]["free"] == found["slots"]["total"] - 1
    assert found["queue"] == {"running": 0, "waiting": 0, "uncached_tokens": 0, "receiving": 0, "lending": 1}
    assert found["rates"]["link_bytes_per_second"] > 0
    assert found["rates"]["prefill_tokens_per_second"] > 0
    assert found["cost"]["state_bytes"] > 0
    post(p, "/pd/withdraw", {"ticket": lent["ticket"]})
    p.wait_idle()


def test_pd_check_finds_nothing_between_two_that_fit(pair: tuple[LiveServer, LiveServer], tmp_path: Path) -> None:
    p, d = pair
    done = check(p.url, d.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "caches can move" in done.stdout
    strangers = check(p.url, d.url, "another cluster's key")
    assert strangers.returncode == 1
    assert "pd_forbidden" in strangers.stderr


def test_pd_check_names_every_difference_before_any_request(
    pair: tuple[LiveServer, LiveServer], tmp_path: Path
) -> None:
    other = engine(tmp_path / "other", "decode", "--dtype", "bfloat16", "--pd-transports", "tcp")
    try:
        done = check(pair[0].url, other.url)
        assert done.returncode == 1
        assert "the weights or cache formats are others" in done.stdout
        assert "kda_conv of layer 0: dtype is float32 here, bfloat16 there" in done.stdout
        lent = ticket(pair[0])
        answer = post(other, CHAT, {**ASK, "kv_transfer_params": {**lent, "fallback": "error"}})
        assert code(answer) == (503, "pd_lost")
        assert "do not fit together" in answer.json()["error"]["message"]
    finally:
        other.stop()


def check(here: str, there: str, secret: str = SECRET) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perilune", "pd", "check", here, there], capture_output=True, text=True, timeout=120,
        env={**os.environ, KEY_VARIABLE: secret}, check=False,
    )  # fmt: skip


def test_case_40_a_role_without_a_key_fails_at_start() -> None:
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "perilune", "serve", "builtin", "--role", "decode", "--port", "0"], capture_output=True,
        text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert KEY_VARIABLE in done.stderr


def test_an_engine_without_a_key_hands_nothing_over(server: LiveServer) -> None:
    with server.client() as client:
        assert code(client.post(TEXT, json={"prompt": "a", "kv_transfer_params": LEG1})) == (400, "pd_off")
        assert code(client.get("/pd/status")) == (400, "pd_off")


def test_a_stopping_engine_lets_a_reader_finish_and_then_takes_its_cache_back(tmp_path: Path) -> None:
    """The lease nobody claims would hold for thirty seconds; the server waits one for it."""
    p = engine(tmp_path / "p", "prefill", "--drain-seconds", "1")
    d = engine(tmp_path / "d", "decode")
    try:
        lents = [ticket(p) for _ in range(2)]
        p.process.send_signal(signal.SIGTERM)
        answers: list[httpx.Response] = []
        reading = threading.Thread(
            target=lambda: answers.append(post(d, CHAT, {**ASK, "kv_transfer_params": lents[0]}))
        )
        reading.start()
        reading.join(60)
        assert p.process.wait(30) == 0
        late = post(d, CHAT, {**ASK, "kv_transfer_params": lents[1]})
        assert late.status_code == 200
        assert late.headers["X-Perilune-Prefill"] == "local"
        (answer,) = answers
        assert answer.status_code == 200  # remote or local: how far the signal had come is nobody's business
        assert said(answer.json()) == said(late.json())
    finally:
        p.stop()
        d.stop()
