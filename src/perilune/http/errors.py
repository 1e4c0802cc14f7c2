"""Every failure as OpenAI's error envelope: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from perilune.errors import EngineDeadError, OverloadedError, PeriluneError

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    503: "overloaded_error",
}  # fmt: skip


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class UnauthorizedError(PeriluneError):
    """The request carries no API key, or a wrong one."""

    http_status = 401
    code = "invalid_api_key"


class ForeignOriginError(PeriluneError):
    """A web page of another site sent the request."""

    http_status = 403
    code = "foreign_origin"


class TooLargeError(PeriluneError):
    """The request's body is larger than the server reads."""

    http_status = 413
    code = "body_too_large"


class SlowBodyError(PeriluneError):
    """The request's body did not arrive in time."""

    http_status = 408
    code = "body_timeout"


class UnknownModelError(PeriluneError):
    """The request names a model this server does not serve."""

    http_status = 404
    code = "model_not_found"


def detail_of(error: BaseException) -> ErrorDetail:
    """The envelope's inside. Anything that is not a PeriluneError tells the client nothing but that it happened."""
    if isinstance(error, PeriluneError):
        return ErrorDetail(message=str(error), type=_type(error.http_status), param=error.param, code=error.code)
    return ErrorDetail(
        message="The server failed on this request. Its log says why.", type="internal_error", code="internal_error"
    )


def status_of(error: BaseException) -> int:
    return error.http_status if isinstance(error, PeriluneError) else 500


def error_response(error: BaseException) -> JSONResponse:
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, EngineDeadError | TooLargeError | SlowBodyError):
        headers["Connection"] = "close"
    return _envelope(status_of(error), detail_of(error), headers)


def log_unexpected(error: BaseException) -> None:
    """What the client is not told, the log is."""
    if not isinstance(error, PeriluneError):
        logger.error("A stream failed.", exc_info=error)


def install(app: FastAPI) -> None:
    """Turns every way a request can fail into the envelope."""

    async def perilune(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _envelope(400, _validation_detail(error.errors()))

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        detail = ErrorDetail(message=str(error.detail), type=_type(error.status_code), code=code)
        return _envelope(error.status_code, detail, dict(error.headers or {}))

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    app.add_exception_handler(PeriluneError, perilune)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")


def _envelope(status: int, detail: ErrorDetail, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, headers)


def _validation_detail(errors: Sequence[Any]) -> ErrorDetail:
    """The first thing wrong, in one sentence: one clear message helps more than a list of union branches."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "path", "query")]
    param = ".".join(where) or None
    if first["type"] in ("unknown_field", "unsupported"):
        code, param = first["type"], _param(first, param)
        return ErrorDetail(message=first["msg"], type="invalid_request_error", param=param, code=code)
    if param is None:
        message = "The body must be a JSON object, sent with the header Content-Type: application/json."
    else:
        message = f"{param}: {first['msg']}."
    return ErrorDetail(message=message, type="invalid_request_error", param=param, code="invalid_request")


def _param(error: Any, fallback: str | None) -> str | None:
    name = (error.get("ctx") or {}).get("param")
    return name if isinstance(name, str) else fallback
