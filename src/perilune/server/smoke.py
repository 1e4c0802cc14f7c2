"""Checks a running server of any make over HTTP: models, a tiny answer, a stream with usage. Imports no server code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from perilune.errors import PeriluneError

_QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chat/completions", {"messages": [{"role": "user", "content": "Say hello."}]}),
    ("completions", {"prompt": "Hello"}),
    ("completions", {"prompt": [1]}),
)
_TOKENS = 8


class SmokeError(PeriluneError):
    """A check failed; the message says what the server did instead."""

    code = "smoke_failed"


@dataclass(frozen=True)
class Passed:
    """One check that passed, in words."""

    check: str
    detail: str


@dataclass(frozen=True)
class Target:
    """`url` with or without /v1. `model` None takes the first the server lists. `seconds` bounds each silence."""

    url: str
    api_key: str | None = None
    model: str | None = None
    seconds: float = 60.0

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")


def smoke(target: Target) -> Iterator[Passed]:
    """Yields each check as it passes. Raises SmokeError at the first that does not."""
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    try:
        client = httpx.Client(base_url=target.base, headers=headers, timeout=target.seconds)
    except (httpx.InvalidURL, ValueError) as error:
        raise SmokeError(f"{target.url!r} is no URL.", f"{error}.", "Write http://host:port.") from error
    with client:
        model, passed = _models(client, target)
        yield passed
        path, body, answer = _first_answer(client, model)
        yield Passed(path, _answer_detail(answer))
        request = {**body, "stream": True, "stream_options": {"include_usage": True}}
        yield Passed("streaming", _streamed(client, f"/v1/{path}", request))


def _first_answer(client: httpx.Client, model: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Endpoint, request and answer: chat, or what a model without a chat template or a tokenizer can do."""
    for path, question in _QUESTIONS:
        body = {"model": model, "max_tokens": _TOKENS, **question}
        response = _sent(client, "POST", f"/v1/{path}", body, accept=(400, 404))
        if response.status_code == 200:
            return path, body, _json(response)
        if "template" not in response.text and "tokenizer" not in response.text:
            break
    raise _refused(response, f"/v1/{path}")


def _models(client: httpx.Client, target: Target) -> tuple[str, Passed]:
    listed = _json(_sent(client, "GET", "/v1/models"))
    entries = listed.get("data")
    entries = entries if isinstance(entries, list) else []
    ids = [entry["id"] for entry in entries if isinstance(entry, dict) and "id" in entry]
    if not ids:
        raise SmokeError("/v1/models lists no model.", f"It answered {_short(listed)}.")
    model = target.model or str(ids[0])
    if model not in ids:
        raise SmokeError(f"The server does not list the model {model!r}.", f"It lists {', '.join(map(str, ids))}.")
    return model, Passed("models", ", ".join(map(str, ids)))


def _answer_detail(answer: dict[str, Any]) -> str:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not choice.get("finish_reason"):
        raise SmokeError("The answer has no finished choice.", f"It is {_short(answer)}.")
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(count, int) or count < 1:
        raise SmokeError("The answer's usage counts no tokens.", f"usage is {_short(usage)}.")
    message = choice.get("message")
    text = choice.get("text")
    if isinstance(message, dict):
        text = message.get("content") or message.get("reasoning_content")
    return f"{count} tokens, {choice['finish_reason']}: {_short(text)}"


def _streamed(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """Reads a whole stream; counts its chunks and looks for the finish reason, the usage and [DONE]."""
    chunks, finish, usage, done = 0, None, None, False
    with _errors(client, path), client.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            response.read()
            raise _refused(response, path)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise SmokeError("The stream is not one of events.", f"Its content type is {kind or 'missing'}.")
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                done = True
                break
            chunk = _chunk(data)
            chunks += 1
            usage = chunk.get("usage") or usage
            finish = next((c["finish_reason"] for c in chunk.get("choices") or [] if c.get("finish_reason")), finish)
    for missing, what in ((not finish, "finish_reason"), (not usage, "usage"), (not done, "[DONE]")):
        if missing:
            raise SmokeError(f"The stream ended without {what}.", f"It had {chunks} chunks.")
    return f"{chunks} chunks, {finish}, usage {usage.get('total_tokens') if isinstance(usage, dict) else usage} tokens"


def _chunk(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise SmokeError("A chunk of the stream is not JSON.", f"It is {_short(data)}.") from error
    if not isinstance(chunk, dict) or "error" in chunk:
        raise SmokeError("The stream broke off with an error.", f"{_short(chunk)}.")
    return chunk


def _sent(
    client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None, accept: tuple[int, ...] = ()
) -> httpx.Response:
    with _errors(client, path):
        response = client.request(method, path, json=body)
    if response.status_code != 200 and response.status_code not in accept:
        raise _refused(response, path)
    return response


class _errors:
    """Turns what can happen to a connection into a SmokeError."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        self._where = f"{str(client.base_url).rstrip('/')}{path}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise SmokeError(f"Nothing answers at {self._where}.", f"{error}.", "Is the server up, and the port right?")
        if isinstance(error, httpx.TimeoutException):
            raise SmokeError(f"{self._where} did not answer in time.", fix="Raise --timeout.") from error
        if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
            raise SmokeError(f"{self._where} is no HTTP address.", f"{error}.", "Write http://host:port.") from error
        if isinstance(error, httpx.HTTPError):
            raise SmokeError(f"The connection to {self._where} broke.", f"{error or type(error).__name__}.") from error


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError as error:
        kind = response.headers.get("content-type", "no content type")
        raise SmokeError(
            f"{response.url} did not answer with JSON.", f"It sent {kind}: {_short(response.text)}.",
            "Is this an OpenAI-compatible server, and not a page in front of it?",
        ) from error  # fmt: skip
    if not isinstance(value, dict):
        raise SmokeError(f"{response.url} did not answer with a JSON object.", f"It sent {_short(value)}.")
    return value


def _refused(response: httpx.Response, path: str) -> SmokeError:
    fix = "Give the right --api-key." if response.status_code in (401, 403) else ""
    return SmokeError(f"{path} answered {response.status_code}.", f"{_short(response.text)}.", fix)


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 120 else text[:117] + "...")
