"""schemathesis sends what the OpenAPI document allows and what it forbids; nothing may be answered with a 5xx."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live import KEY, MODEL, LiveServer
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

OPERATIONS = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/responses"), ("POST", "/tokenize"),
    ("POST", "/detokenize"), ("GET", "/v1/models"), ("GET", "/v1/models/{model_id}"), ("GET", "/health"),
    ("GET", "/ready"), ("GET", "/metrics"),
]  # fmt: skip
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def schema(server: LiveServer) -> schemathesis.BaseSchema:
    document = httpx.get(f"{server.url}/openapi.json", headers=HEADERS).json()
    return schemathesis.openapi.from_dict(document)


def get_past_the_door(body: object) -> None:
    """A random model name would end in 404 and long answers in a long test; everything else stays as drawn."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body["model"] = MODEL
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
            if isinstance(value := body.get(name), int) and value > 2:
                body[name] = 2
        if "messages" in body or "prompt" in body:
            body.setdefault("max_tokens", 2)
        if "input" in body:
            body.setdefault("max_output_tokens", 2)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
    + [(*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation[0] == "POST"],
    ids=lambda part: part.value if isinstance(part, GenerationMode) else part,
)
def test_nothing_the_document_allows_or_forbids_is_a_5xx(
    server: LiveServer, schema: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    statuses: set[int] = set()

    @settings(
        max_examples=25 if method == "POST" else 8,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        case: Case = data.draw(operation.as_strategy(generation_mode=mode))
        get_past_the_door(case.body)
        response = case.call(base_url=server.url, headers=HEADERS, timeout=60)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS, headers=HEADERS)

    fuzz()
    assert statuses
    assert server.process.poll() is None, server.log.read_text()
    assert httpx.get(f"{server.url}/health").status_code == 200
