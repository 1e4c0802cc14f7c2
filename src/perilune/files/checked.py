"""From a YAML file to a checked model, with every complaint at its line."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from perilune.errors import ConfigError, nearest
from perilune.files.yamlfile import YamlFile

Model = TypeVar("Model", bound=BaseModel)


def checked(kind: type[Model], source: YamlFile) -> Model:
    """`source` as `kind`. Raises ConfigError: the first complaint, then up to seven more, each with file and line."""
    try:
        return kind.model_validate(source.data)
    except ValidationError as error:
        complaints = [_complaint(source, dict(each)) for each in error.errors(include_url=False)]
        raise ConfigError(*_first_and_rest(complaints)) from error


def _complaint(source: YamlFile, error: dict[str, Any]) -> str:
    route = source.known(tuple(error["loc"]))
    context = error.get("ctx") or {}
    if error["type"] == "unknown_key":
        route = (*route, context["key"])
    key = ".".join(str(part) for part in route)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        message = f"{error['loc'][-1]!r} is missing"
    elif error["type"] == "literal_error":
        message = f"{message}, not {error['input']!r}"
    elif error["type"] == "union_tag_invalid":
        valid = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        message = f"{context['tag']!r} is no kind. {nearest(str(context['tag']), valid)}"
    return f"{source.place(route)}: {key or 'the file'}: {message}"


def _first_and_rest(complaints: list[str]) -> tuple[str, str]:
    rest = complaints[1:8]
    more = f"\n… and {len(complaints) - 8} more" if len(complaints) > 8 else ""
    return complaints[0], "\n".join(rest) + more
