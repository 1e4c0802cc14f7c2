"""Request bodies as models that name an unknown field's nearest valid neighbour."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from perilune.errors import nearest

INT32_MAX = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


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
