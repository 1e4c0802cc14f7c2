"""`perilune bench …`: sweeps, load, verdicts and reports over HTTP. Each command parses, calls and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from perilune.bench.plan.point import Point

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure a server of any make: sweeps, load, verdicts, accuracy, report.",
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(help="A sweep file.")]
Sweep = Annotated[str | None, typer.Option("--sweep", help="Only this sweep of the file.")]
Facts = Annotated[list[str] | None, typer.Option("--fact", help="NAME=VALUE, over the file's hardware facts.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@bench.command()
def plan(file: File, sweep: Sweep = None, fact: Facts = None, as_json: Json = False) -> None:
    """List the points a file expands to. Needs no GPU and starts nothing."""
    from rich.console import Console
    from rich.table import Table

    from perilune.bench.plan import describe

    points = _points(file, sweep, fact)
    if as_json:
        typer.echo(json.dumps([describe.as_json(point) for point in points], indent=2))
        return
    table = Table("fingerprint", "sweep", "point", "GPUs", "requests", "rules", box=None)
    for point in points:
        gpus = point.server.topology.gpus if point.server.hardware.gpus else 0
        count = describe.requests_of(point)
        table.add_row(
            point.fingerprint, point.name, point.label, str(gpus), "trace" if count is None else str(count),
            str(len(point.server.fired)),
        )  # fmt: skip
    Console(width=None if typer.get_text_stream("stdout").isatty() else 200).print(table)
    servers, runs = len({p.server.fingerprint for p in points}), sum(p.sweep.repeats for p in points)
    typer.echo(f"{len(points)} points, {runs} runs, {servers} servers")


@bench.command()
def explain(
    file: File,
    point: Annotated[str | None, typer.Argument(help="A fingerprint, or its beginning; else every point.")] = None,
    sweep: Sweep = None,
    fact: Facts = None,
    as_json: Json = False,
) -> None:
    """Show command, environment, GPUs, and which rules held and why."""
    from perilune.bench.plan import describe
    from perilune.errors import ConfigError

    found = [each for each in _points(file, sweep, fact) if each.fingerprint.startswith(point or "")]
    if not found:
        raise ConfigError(f"No point has a fingerprint like {point!r}.", fix="`perilune bench plan` lists them.")
    if as_json:
        typer.echo(json.dumps([describe.as_json(each) for each in found], indent=2))
        return
    for each in found:
        typer.echo("\n".join(describe.explain(each)))


@bench.command()
def diff(old: File, new: File, fact: Facts = None, as_json: Json = False) -> None:
    """Show which points a change of a file adds, removes, changes or keeps."""
    from perilune.bench.plan import describe

    found = describe.difference(_points(old, None, fact), _points(new, None, fact))
    if as_json:
        shown: dict[str, Any] = {
            kind: [each.fingerprint for each in getattr(found, kind)] for kind in ("added", "removed", "kept")
        }
        shown["changed"] = [
            {"old": a.fingerprint, "new": b.fingerprint, "what": list(what)} for a, b, what in found.changed
        ]
        typer.echo(json.dumps(shown, indent=2))
        return
    for sign, points in (("+", found.added), ("-", found.removed)):
        for each in points:
            typer.echo(f"{sign} {each.fingerprint}  {each.name}  {each.label}")
    for a, b, what in found.changed:
        typer.echo(f"~ {a.fingerprint} -> {b.fingerprint}  {b.name}  {b.label}")
        typer.echo("".join(f"    {line}\n" for line in what), nl=False)
    typer.echo(f"{len(found.kept)} kept, {len(found.changed)} changed, {len(found.added)} added, "
               f"{len(found.removed)} removed")  # fmt: skip


@bench.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An InferenceX master file.")],
    keys: Annotated[str, typer.Option(help="Glob of entry names.")] = "*",
) -> None:
    """Print a sweep file made from InferenceX entries; what is left out goes to stderr."""
    from perilune.bench.plan.inferencex import import_master
    from perilune.bench.spec.yamlfile import read_yaml

    imported = import_master(read_yaml(file), keys)
    typer.echo(imported.text(), nl=False)
    for line in imported.skipped:
        typer.echo(f"left out: {line}", err=True)


@bench.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from perilune.bench.spec.load import schema as of_files

    typer.echo(json.dumps(of_files(), indent=2))


def _points(file: Path, sweep: str | None, facts: list[str] | None) -> tuple[Point, ...]:
    from perilune.bench.plan.expand import expand
    from perilune.bench.spec.facts import parse_facts
    from perilune.bench.spec.load import load_sweeps

    return expand(load_sweeps(file), sweep, parse_facts(facts or []))
