"""Data files read strictly: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from perilune.errors import ConfigError, nearest


class Strict(BaseModel):
    """A frozen table of a TOML file. Keys are written with dashes; `is` and `from` are fields with a trailing `_`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=False,
        alias_generator=lambda name: name.rstrip("_").replace("_", "-"),
    )

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        valid = {field.alias or name for name, field in cls.model_fields.items()}
        for key in value if isinstance(value, dict) else ():
            if key not in valid:
                raise ConfigError(f"[{cls.__name__.lower()}] has no key {key!r}.", "", nearest(key, valid))
        return value


Table = TypeVar("Table", bound=Strict)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read.", f"{error}.") from error


def parse(kind: type[Table], tables: dict[str, Any], where: str) -> Table:
    """`tables` as `kind`. Raises ConfigError that says where, which key, and what is wrong with it."""
    try:
        return kind.model_validate(tables)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", error.why, error.fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "it"
        raise ConfigError(f"{where}: {key} is wrong.", f"{first['msg']}.") from error
