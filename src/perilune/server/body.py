"""Reading request bodies: strict JSON, and models that name an unknown field's nearest valid neighbour."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from perilune.errors import nearest

INT32_MAX = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


class JsonRequest(Request):
    """Reads JSON with pydantic's parser: no NaN, no lone surrogates, bounded nesting."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = from_json(body, allow_inf_nan=False)
            except ValueError as error:
                raise HTTPException(400, f"The body is not valid JSON: {error}.") from error
        return self._json


class JsonRoute(APIRoute):
    """A route whose body is read by JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def read_strictly(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return read_strictly


class StrictBody(BaseModel):
    """A request body. Values are not coerced, and an unknown field is an error that names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = {field.alias or name for name, field in cls.model_fields.items()}
            for name in data:
                if name not in valid:
                    reason = f"Unknown field {name[:100]!r}. {nearest(name[:100], valid)}"
                    raise PydanticCustomError("unknown_field", "{reason}", {"reason": reason, "param": name[:100]})
        return data


class LooseBody(BaseModel):
    """A part of a body that clients send back as they got it: what is not known is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


def unsupported(message: str) -> PydanticCustomError:
    """For validators: a field that is well formed and cannot be served."""
    return PydanticCustomError("unsupported", "{reason}", {"reason": message})
