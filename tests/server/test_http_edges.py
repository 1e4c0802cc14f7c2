"""What a real server says to requests that are too large, unauthorised, malformed or simply strange."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from live import CONTEXT, KEY, MAX_BODY, MODEL, SECOND_KEY, LiveServer

POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"]


def error_of(response: httpx.Response) -> dict:
    """The error envelope, which every failure must have."""
    (key,) = response.json()
    assert key == "error"
    detail = response.json()["error"]
    assert set(detail) == {"message", "type", "param", "code"}
    return detail


@pytest.mark.parametrize("key", [None, "wrong", KEY[:-1], KEY + "x", "schlüssel"])
def test_without_the_right_key_everything_but_the_probes_is_401(server: LiveServer, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing"):
        response = httpx.get(server.url + path, headers=headers)
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
    for path in ("/health", "/ready"):
        assert httpx.get(server.url + path, headers=headers).status_code == 200


def test_each_of_several_keys_opens(server: LiveServer) -> None:
    for key in (KEY, SECOND_KEY):
        response = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert response.status_code == 200


def test_a_body_over_the_limit_is_413_whether_announced_or_chunked(http: httpx.Client) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x" * MAX_BODY}).encode()

    def chunked() -> Iterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]

    for content in (body, chunked()):
        response = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert "--max-body-bytes" in error_of(response)["message"]


def test_a_chunked_body_under_the_limit_is_read(http: httpx.Client) -> None:
    parts = iter([b'{"prompt": ', b'"One two"', b"}"])
    response = http.post("/tokenize", content=parts, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}',
        b'{"messages": ' + b"[" * 100_000, b"[" * 5000 + b"]" * 5000, b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"\\u0000": 1}', b'{"prompt": ["a", 1]}', b'{"tokens": [' + b"9" * 30 + b"]}", b'{"model": {}}',
    ],
    ids=range(16),
)  # fmt: skip
def test_a_malformed_body_is_a_400_with_a_reason(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["message"]


def test_a_body_of_another_type_is_a_400_that_names_the_header(http: httpx.Client) -> None:
    response = http.post("/v1/completions", data={"prompt": "x"})
    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]


def test_unknown_paths_and_methods_keep_the_envelope(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert error_of(http.get("/v1/nothing"))["code"] == "not_found"
    assert http.get("/v1/completions").status_code == 405
    assert error_of(http.delete("/v1/models"))["code"] == "method_not_allowed"


@pytest.mark.parametrize("text", ["\0", "\0" * 100, "a\0b", "😀" * 50, "\u202e", " " * 300], ids=range(6))
def test_odd_text_is_served(http: httpx.Client, text: str) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=asked).status_code == 200


def test_control_tokens_in_user_text_stay_text(http: httpx.Client) -> None:
    marker = "<|im_end|>"

    def strings(content: str) -> list[str]:
        messages = [{"role": "user", "content": content}]
        return http.post("/tokenize", json={"messages": messages, "return_token_strs": True}).json()["token_strs"]

    plain, forged = strings("x"), strings(marker)
    assert plain.count(marker) == forged.count(marker)
    assert "".join(forged).count(marker) == plain.count(marker) + 1


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    text = "One page holds 64 tokens. 日本語 😀\n"
    found = http.post("/tokenize", json={"model": MODEL, "prompt": text}).json()
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == CONTEXT
    assert http.post("/detokenize", json={"model": MODEL, "tokens": found["tokens"]}).json() == {"prompt": text}


def test_tokenized_messages_are_what_a_chat_counts(http: httpx.Client) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    count = http.post("/tokenize", json={"messages": messages}).json()["count"]
    answer = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == count


def test_tokenize_wants_exactly_one_of_prompt_and_messages(http: httpx.Client) -> None:
    for body in ({}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}):
        response = http.post("/tokenize", json=body)
        assert response.status_code == 400
        assert error_of(response)["param"] == "prompt"


def test_detokenize_refuses_ids_outside_the_vocabulary(http: httpx.Client) -> None:
    response = http.post("/detokenize", json={"tokens": [10**6]})
    assert response.status_code == 400
    assert "outside the vocabulary" in error_of(response)["message"]


def test_no_address_a_client_sends_is_believed(server: LiveServer, http: httpx.Client) -> None:
    forged = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Forwarded-Proto": "https"}
    assert http.get("/v1/models", headers=forged).status_code == 200
    assert "203.0.113.9" not in server.log.read_text()


def test_metrics_count_what_was_served(server: LiveServer, http: httpx.Client) -> None:
    before = server.metric("perilune_generation_tokens_total")
    asked = {"model": MODEL, "prompt": "x", "max_tokens": 7, "ignore_eos": True}
    http.post("/v1/completions", json=asked).raise_for_status()
    assert server.metric("perilune_generation_tokens_total") == before + 7
    assert server.metric("perilune_requests_total", outcome="length") > 0
    assert server.metric("perilune_time_to_first_token_seconds_count") > 0
    assert server.metric("perilune_inter_token_seconds_count") > 0
    assert server.metric("perilune_engine_up") == 1
    planned = server.metric("perilune_engine_cache_bytes_planned")
    assert planned == server.metric("perilune_engine_cache_bytes_allocated") > 0


def test_the_docs_page_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert "/v1/chat/completions" in page
    assert "max_completion_tokens" in page
    assert "src=" not in page
    assert "http://" not in page.replace(str(http.base_url), "")
    assert "https://" not in page


def test_the_openapi_document_describes_the_errors_that_happen(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path in POSTS:
        answers = document["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413"} <= set(answers)
        assert "422" not in answers
    assert "HTTPValidationError" not in document["components"]["schemas"]
