"""The OpenAPI document: which errors a route can answer with, and no trace of FastAPI's own error form."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from perilune.http.errors import ErrorBody

_WHY = {
    400: "The request is invalid; the message says what, why and what helps.",
    401: "The API key is missing or wrong.",
    403: "Only the cluster's router may ask for this; without its stamp, kv_transfer_params are refused.",
    404: "The model or the path does not exist.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the server reads.",
    503: "The queue is full, or the engine is not running.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for these statuses."""
    return {status: {"model": ErrorBody, "description": _WHY[status]} for status in statuses}


PLAIN_ERRORS = errors(401)
BODY_ERRORS = errors(400, 401, 404, 408, 413)
GENERATION_ERRORS = errors(400, 401, 403, 404, 408, 413, 503)
STREAM_OR_JSON: dict[int | str, dict[str, Any]] = {
    200: {
        "description": 'The answer; with `"stream": true` as server-sent events.',
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def describe(app: FastAPI, keys: bool) -> None:
    """Makes `app.openapi()` say what the server really does. `keys`: an API key is asked for."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = generate()
            for path in made["paths"].values():
                for operation in path.values():
                    # FastAPI adds 422 to every route with a body; here such errors are 400 in OpenAI's form.
                    operation["responses"].pop("422", None)
            schemas = made.get("components", {}).get("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            if keys:
                made.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way of changing the document
