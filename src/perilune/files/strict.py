"""The base of every model of a file: frozen, no unknown keys, and a hint for a mistyped one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from perilune.errors import nearest


class Strict(BaseModel):
    """Frozen; strict about keys and types (`"4"` is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = {field.alias or name for name, field in cls.model_fields.items()}
            for key in data:
                if key not in valid and key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "{hint}",
                        {"key": key, "hint": f"there is no {key!r} here. {nearest(str(key), valid)}"},
                    )
        return data
