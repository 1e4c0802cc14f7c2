"""From a file to a checked SweepFile, with every complaint at its line; and the JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perilune.bench.spec.sweep import SweepFile
from perilune.deploy.condition import parse_condition
from perilune.errors import ConfigError, PeriluneError, nearest
from perilune.files.checked import checked
from perilune.files.yamlfile import Route, YamlFile, parse_yaml, read_yaml


@dataclass(frozen=True)
class Loaded:
    """A checked file, and where it came from, for errors found later."""

    file: SweepFile
    source: YamlFile

    def wrong(self, route: Route, error: PeriluneError | str) -> ConfigError:
        """`error`, with file, line and key in front."""
        place = f"{self.source.place(route)}: {'.'.join(map(str, route))}"
        if isinstance(error, str):
            return ConfigError(f"{place}: {error}")
        return ConfigError(f"{place}: {error.what}", error.why, error.fix)


def load_sweeps(path: Path) -> Loaded:
    """Raises ConfigError naming file, line, key and the nearest valid name."""
    return check(read_yaml(path))


def parse_sweeps(text: str, path: str = "<text>") -> Loaded:
    """The same for text in memory."""
    return check(parse_yaml(text, path))


def check(source: YamlFile) -> Loaded:
    """Types, then what types cannot say: names that refer to nothing, conditions that do not parse."""
    file = checked(SweepFile, source)
    loaded = Loaded(file, source)
    for name, sweep in file.sweeps.items():
        _refers(loaded, ("sweeps", name, "recipe"), sweep.recipe, file.recipes)
        if isinstance(sweep.workload, str):
            _refers(loaded, ("sweeps", name, "workload"), sweep.workload, file.workloads)
        _parses(loaded, ("sweeps", name, "where"), sweep.where)
    for name, recipe in file.recipes.items():
        for i, rule in enumerate(recipe.rules):
            _parses(loaded, ("recipes", name, "rules", i, "when"), rule.when)
    return loaded


def schema() -> dict[str, Any]:
    """JSON Schema of a sweep file."""
    return SweepFile.model_json_schema(by_alias=True)


def _refers(loaded: Loaded, route: Route, name: str | None, valid: Iterable[str]) -> None:
    if name is not None and name not in (names := list(valid)):
        hint = nearest(name, names) if names else "The file has none."
        raise loaded.wrong(route, f"there is no {name!r}. {hint}")


def _parses(loaded: Loaded, route: Route, text: str | None) -> None:
    if text is not None:
        try:
            parse_condition(text)
        except ConfigError as error:
            raise loaded.wrong(route, error) from error
