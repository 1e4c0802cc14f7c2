"""YAML that remembers the line every key stands on. A repeated key is an error; `on` and `no` are words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perilune.errors import ConfigError

Route = tuple[str | int, ...]
"""The keys and indices that lead from the top of a file to one value."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """The core schema of YAML 1.2: true and false are booleans, `yes`, `no`, `on`, `off` and `1:30` are not."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it so
        first: [
            (tag, pattern)
            for tag, pattern in found
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
        ]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    return int(text, 16) if text.startswith("0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)  # 010 is ten, not eight


@dataclass(frozen=True)
class YamlFile:
    """`data` as plain Python; `lines` the 1-based line of every key and list item."""

    path: str
    data: Any
    lines: Mapping[Route, int]

    def known(self, route: Route) -> Route:
        """The parts of `route` the file has: pydantic also names union members in its locations."""
        found: Route = ()
        for part in route:
            if (*found, part) in self.lines:
                found = (*found, part)
        return found

    def place(self, route: Route) -> str:
        """`file:line` of the value at `route`, or of the nearest value around it."""
        return f"{self.path}:{self.lines.get(self.known(route), 1)}"


def read_yaml(path: Path) -> YamlFile:
    """Raises ConfigError for a file that cannot be read or is no YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}.", f"{error}.", "Give the path of a YAML file.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, path: str = "<text>") -> YamlFile:
    """The first document of `text`. Raises ConfigError with file and line."""
    loader = _Loader(text)
    lines: dict[Route, int] = {}
    try:
        node = loader.get_single_node()
        data = None if node is None else _value(loader, node, (), lines, path, frozenset())
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(f"{path}:{line}: not YAML.", f"{error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML.", f"{error}.") from error
    finally:
        loader.dispose()
    return YamlFile(path, data, lines)


def _value(
    loader: _Loader, node: yaml.Node, route: Route, lines: dict[Route, int], path: str, above: frozenset[int]
) -> Any:
    lines.setdefault(route, node.start_mark.line + 1)
    if id(node) in above:
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: an alias contains itself.")
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*route, i), lines, path, above) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    own = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    keys = [str(key) for key in own]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            raise ConfigError(f"{path}:{node.value[i][0].start_mark.line + 1}: {key!r} stands here twice.")
    loader.flatten_mapping(node)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node))
        lines[*route, key] = key_node.start_mark.line + 1
        found[key] = _value(loader, value_node, (*route, key), lines, path, above)
    return found
