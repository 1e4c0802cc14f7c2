"""The expansion: a checked file in, points out. Pure; every other part of the bench works on its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from perilune.bench.plan.axes import product
from perilune.bench.plan.command import filled, server_of, topology
from perilune.bench.plan.point import Point, Server, Topology
from perilune.bench.spec.load import Loaded
from perilune.bench.spec.recipe import Hardware
from perilune.bench.spec.sweep import Sweep, SweepFile, Target
from perilune.bench.spec.workload import Load, Workload
from perilune.deploy.condition import UNKNOWN, parse_condition
from perilune.deploy.points import CHECKS, fact_of
from perilune.errors import ConfigError, PeriluneError, nearest

_TOPOLOGY = tuple(Topology.__dataclass_fields__)
_SHORT = {"conc": "load.conc", "rate": "load.rate", "isl": "workload.input", "osl": "workload.output"}
"""Short names of the axes used most."""


def expand(loaded: Loaded, only: str | None = None, facts: Mapping[str, Any] | None = None) -> tuple[Point, ...]:
    """The points of every sweep, or of the one named `only`, in the file's order, none twice.

    `facts` are set over each sweep's hardware facts. Raises ConfigError, with file and line, for a name, rule or
    value that does not work out.
    """
    file = loaded.file
    if only is not None and only not in file.sweeps:
        raise ConfigError(f"{loaded.source.path} has no sweep {only!r}.", fix=nearest(only, file.sweeps))
    found: dict[str, Point] = {}
    for name in file.sweeps if only is None else (only,):
        try:
            points = _points(file, name, facts or {})
        except PeriluneError as error:
            raise loaded.wrong(("sweeps", name), error) from error
        if not points:
            raise loaded.wrong(("sweeps", name), "no point is left; `where` rejects all of them")
        for point in points:
            found.setdefault(point.fingerprint, point)
    return tuple(found.values())


def _points(file: SweepFile, name: str, facts: Mapping[str, Any]) -> list[Point]:
    sweep = file.sweeps[name]
    where = None if sweep.where is None else parse_condition(sweep.where)
    found = []
    for axes in sweep.axes if isinstance(sweep.axes, list) else [sweep.axes]:
        for row in product(axes):
            names = _names(sweep, row, facts)
            if where is None or where.holds(names):
                found.append(_point(file, name, sweep, row, names))
    return found


def _names(sweep: Sweep, row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What conditions and templates see: facts, degrees of parallelism, labels and the row.

    A rule of the doctor that nobody ran is not known; it is never taken for a pass.
    """
    doctor = {id: fact_of(id, None) for id in CHECKS}
    known = {key: UNKNOWN if value is None else value for key, value in {**sweep.hardware.facts, **facts}.items()}
    names: dict[str, Any] = {**doctor, **known, **dict.fromkeys(_TOPOLOGY, 1), **sweep.labels}
    for short, route in _SHORT.items():
        names[short] = _inside(sweep, route)
    return {**names, **row}


def _inside(sweep: Sweep, route: str) -> Any:
    part, field = route.split(".")
    value = getattr(sweep, part)
    value = None if isinstance(value, str) else getattr(value, field, None)
    return value if isinstance(value, int | float | str) else UNKNOWN


def _point(file: SweepFile, name: str, sweep: Sweep, row: Mapping[str, Any], names: Mapping[str, Any]) -> Point:
    changed: dict[str, dict[str, Any]] = {"argv": {}, "env": {}, "workload": {}, "load": {}}
    recipe = sweep.recipe
    for key, value in row.items():
        part, _, field = _SHORT.get(key, key).partition(".")
        if field and part in changed:
            changed[part][field] = value
        elif key == "recipe":
            recipe = value
        elif key not in _TOPOLOGY and key not in sweep.labels:
            valid = [*_TOPOLOGY, *_SHORT, "recipe", *sweep.labels, "argv.…", "env.…", "workload.…", "load.…"]
            raise ConfigError(f"{key!r} is no axis.", fix=nearest(key, valid) + " Other names have to be labels.")
    workload = file.workloads[sweep.workload] if isinstance(sweep.workload, str) else sweep.workload
    if recipe is not None and recipe not in file.recipes:
        raise ConfigError(f"There is no recipe {recipe!r}.", fix=nearest(recipe, file.recipes))
    if recipe is None:
        if changed["argv"] or changed["env"]:
            raise ConfigError("Flags and variables of a server that runs already cannot be axes.", fix="Use a recipe.")
        assert sweep.target is not None
        server = _running(sweep.target, sweep.hardware, names)
    else:
        server = server_of(file.recipes[recipe], sweep.hardware, names, changed["argv"], changed["env"])
    return Point(
        name=name,
        names=dict(row),
        server=server,
        workload=_with(Workload, workload, changed["workload"], "workload"),
        load=_with(Load, sweep.load, changed["load"], "load"),
        sweep=sweep,
    )


def _running(target: Target, hardware: Hardware, names: Mapping[str, Any]) -> Server:
    url = filled(target.url, names)
    return Server(
        "", target.model or "", None, (), {}, (), topology(names), hardware, target.model_copy(update={"url": url})
    )


def _with(kind: Any, model: BaseModel, changes: Mapping[str, Any], part: str) -> Any:
    """`model` with `changes`, checked again: an axis can be as wrong as a file."""
    if not changes:
        return model
    valid = type(model).model_fields
    for key in changes:
        if key not in valid:
            raise ConfigError(
                f"{part}.{key} is nothing a {getattr(model, 'kind', part)!r} {part} has.", fix=nearest(key, valid)
            )
    try:
        return TypeAdapter(kind).validate_python({**model.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{part}.{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}, not {first['input']!r}."
        ) from error
