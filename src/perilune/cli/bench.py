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
Facts = Annotated[
    list[str] | None,
    typer.Option("--fact", help="NAME=VALUE, over the file's hardware facts; `run` reads some itself."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@bench.command()
def plan(
    file: File,
    sweep: Sweep = None,
    fact: Facts = None,
    like: Annotated[Path | None, typer.Option(help="Earlier results: how long the same points took.")] = None,
    as_json: Json = False,
) -> None:
    """List the points a file expands to. Needs no GPU and starts nothing."""
    from rich.console import Console
    from rich.table import Table

    from perilune.bench.plan import describe
    from perilune.bench.store import Store
    from perilune.units import format_seconds

    points = _points(file, sweep, fact)
    took = Store(like).seconds() if like else {}
    if as_json:
        typer.echo(json.dumps([describe.as_json(point, took) for point in points], indent=2))
        return
    table = Table("fingerprint", "sweep", "point", "GPUs", "requests", "a run", "repeats", "rules", box=None)
    for point in points:
        count, seconds = describe.requests_of(point), describe.run_seconds(point, took)
        table.add_row(
            point.fingerprint, point.name, point.label, str(point.server.gpus), str(count or "trace"),
            "?" if seconds is None else format_seconds(seconds), str(point.sweep.repeats), str(len(point.server.fired)),
        )  # fmt: skip
    Console(width=None if typer.get_text_stream("stdout").isatty() else 200).print(table)
    servers, runs = len({p.server.fingerprint for p in points}), sum(p.sweep.repeats for p in points)
    typer.echo(f"{len(points)} points, {runs} runs, {servers} servers; {describe.total_time(points, took)}")


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
    from perilune.files.yamlfile import read_yaml

    imported = import_master(read_yaml(file), keys)
    typer.echo(imported.text(), nl=False)
    for line in imported.skipped:
        typer.echo(f"left out: {line}", err=True)


@bench.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from perilune.bench.spec.load import schema as of_files

    typer.echo(json.dumps(of_files(), indent=2))


Results = Annotated[Path, typer.Argument(help="A folder of results.")]
Into = Annotated[Path, typer.Option("--into", help="Folder for results; what it has is not measured again.")]


@bench.command()
def run(file: File, into: Into, sweep: Sweep = None, fact: Facts = None) -> None:
    """Measure every point the folder does not have yet. Exit status 1 if a run failed."""
    from perilune.bench import run as running
    from perilune.bench.progress import meter
    from perilune.bench.selfcheck import SelfCheck
    from perilune.bench.store import Store

    points = _points(file, sweep, fact, probe=True)
    store = Store(into)
    try:
        with meter() as shown:
            added = running.run(points, store, shown, check=SelfCheck())
    except KeyboardInterrupt:
        typer.echo(f"interrupted; `perilune bench resume {file} --into {into}` goes on", err=True)
        raise typer.Exit(130) from None
    wanted = {point.fingerprint for point in points}
    status = [e["verdict"]["status"] for e in store.entries() if e["fingerprint"] in wanted]
    typer.echo(f"{len(added)} runs added; {', '.join(f'{status.count(s)} {s}' for s in sorted(set(status)))}")
    raise typer.Exit(1 if "failed" in status else 0)


@bench.command()
def resume(file: File, into: Into, sweep: Sweep = None, fact: Facts = None) -> None:
    """Go on with an interrupted run; failed runs are tried again. The same as `run` into a folder that exists."""
    from perilune.errors import ConfigError

    if not into.is_dir():
        raise ConfigError(f"{into} is no folder.", fix="`perilune bench run` begins one.")
    run(file, into, sweep, fact)


@bench.command()
def search(
    file: File,
    into: Into,
    sweep: Annotated[str, typer.Option("--sweep", help="The sweep, with an slo and one point beside the load.")],
    axis: Annotated[str, typer.Option(help="conc or rate.")] = "conc",
    low: Annotated[int, typer.Option(min=1)] = 1,
    high: Annotated[int, typer.Option(min=1)] = 256,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of requests that have to keep the SLO.")] = 0.99,
    fact: Facts = None,
) -> None:
    """Find the highest load that keeps the SLO. Exit status 1 if not even the lowest does."""
    from perilune.bench.progress import meter
    from perilune.bench.search import search as bisect
    from perilune.bench.spec.facts import parse_facts
    from perilune.bench.spec.load import load_sweeps
    from perilune.bench.store import Store

    facts = parse_facts(fact or [])
    with meter() as shown:
        found, tried = bisect(load_sweeps(file), sweep, axis, low, high, share, Store(into), shown, facts)
    for each in sorted(tried, key=lambda t: t.load):
        typer.echo(f"{axis}={each.load}: " + ("failed" if each.good is None else f"{each.good:.1%} within the SLO"))
    typer.echo(f"highest: {axis}={found}" if found is not None else f"not even {axis}={low} keeps the SLO")
    raise typer.Exit(0 if found is not None else 1)


@bench.command("ls")
def ls(
    results: Results,
    status: Annotated[str | None, typer.Option(help="Only valid, degraded or failed runs.")] = None,
    metric: Annotated[str, typer.Option(help="The number to show.")] = "output_per_s",
    as_json: Json = False,
) -> None:
    """List the runs a folder has, with state and one number."""
    from perilune.bench.store import Store

    rows = Store(results).listed(metric, status)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        value = "-" if row[metric] is None else f"{row[metric]:.4g}"
        names = " ".join(f"{key}={value}" for key, value in row["names"].items()) or "-"
        typer.echo(f"{row['fingerprint']} #{row['repeat']}  {row['status']:<8}  {value:>8}  {row['sweep']}  {names}")
    typer.echo(f"{len(rows)} runs; the number is {metric}")


@bench.command()
def compare(
    old: Results,
    new: Results,
    metric: Annotated[list[str] | None, typer.Option(help="Compare these; repeat for several.")] = None,
    margin: Annotated[float, typer.Option(min=0, max=0.5, help="Differences up to this share do not matter.")] = 0.02,
    level: Annotated[float, typer.Option(min=0.5, max=0.9999)] = 0.95,
    looks: Annotated[int, typer.Option(min=1, help="How often this is looked at while repeats are added.")] = 1,
    as_json: Json = False,
) -> None:
    """Judge new results against old. Exit status 0: nothing worse; 1: something is; 3: not enough data to tell."""
    from perilune.bench.compare import METRICS, lines
    from perilune.bench.compare import compare as judged
    from perilune.bench.store import Store

    found = judged(
        Store(old).entries(), Store(new).entries(), metric or METRICS, margin=margin, level=level, looks=looks
    )
    if as_json:
        rows = [{**vars(row), "judged": vars(row.judged)} for row in found.rows]
        typer.echo(json.dumps({"rows": rows, "missing": found.missing, "exit_code": found.exit_code}, indent=2))
    else:
        typer.echo("\n".join(lines(found)))
    raise typer.Exit(found.exit_code)


@bench.command()
def diverge(
    old: Annotated[str, typer.Argument(help="URL of the server that is right.")],
    new: Annotated[str, typer.Argument(help="URL of the server in question, such as the front of a split one.")],
    count: Annotated[int, typer.Option("--prompts", min=1)] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    near: Annotated[float, typer.Option(min=0, help="Closer than this, two tokens were a tie.")] = 0.05,
    as_json: Json = False,
) -> None:
    """Ask both greedily and find the first token that differs. Exit status 1 if one does that was no near-tie."""
    from perilune.bench.evals.divergence import probe, prompts
    from perilune.bench.run import listed

    sides = [(url, listed(url, {})) for url in (old, new)]
    found = probe(sides[0], sides[1], prompts(count, length), tokens)
    wrong = [each for each in found if each.index is not None and (each.gap is None or each.gap > near)]
    if as_json:
        typer.echo(json.dumps({"divergences": [vars(each) for each in found], "wrong": len(wrong)}, indent=2))
    else:
        for each in found:
            gap = "unknown" if each.gap is None else f"{each.gap:.3g}"
            same = f"{each.tokens} tokens alike"
            says = same if each.index is None else f"differs at token {each.index}, the two best {gap} apart"
            typer.echo(f"prompt {each.prompt}: {says}")
        typer.echo(f"{len(found) - len(wrong)} of {len(found)} alike, or apart at a near-tie only")
    raise typer.Exit(1 if wrong else 0)


@bench.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders of results.")],
    out: Annotated[Path, typer.Option("--out", help="The file: .html, .md or .csv.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "perilune bench",
) -> None:
    """Write charts, verdicts and provenance as one HTML file that loads nothing; or tables, as Markdown or CSV."""
    from perilune.bench.export import table
    from perilune.bench.report.page import page
    from perilune.bench.report.table import markdown
    from perilune.bench.store import Store
    from perilune.errors import ConfigError

    stores = [(str(folder), Store(folder).entries()) for folder in results]
    if out.suffix == ".md":
        text = markdown(stores, title)
    elif out.suffix == ".csv":
        text = table([entry for _, entries in stores for entry in entries])
    elif out.suffix == ".html":
        text = page(stores, title)
    else:
        raise ConfigError(f"{out} is no kind of report.", fix="Name it .html, .md or .csv.")
    out.write_text(text, encoding="utf-8")
    typer.echo(str(out))


@bench.command()
def export(
    results: Results,
    form: Annotated[str, typer.Option("--format", help="inferencex or csv.")] = "inferencex",
) -> None:
    """Print results in InferenceX's aggregate JSON, or as CSV."""
    from perilune.bench.export import inferencex, table
    from perilune.bench.store import Store
    from perilune.errors import ConfigError, nearest

    if form not in ("inferencex", "csv"):
        raise ConfigError(f"There is no format {form!r}.", fix=nearest(form, ("inferencex", "csv")))
    entries = Store(results).entries()
    if form == "csv":
        typer.echo(table(entries), nl=False)
    else:
        kept = [inferencex(entry) for entry in entries if entry["verdict"]["status"] != "failed"]
        typer.echo(json.dumps(kept, indent=2))


@bench.command("self-check")
def self_check(
    rate: Annotated[
        float | None, typer.Option(min=1, help="Requests per second; else doubled until the client is late.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=1000, help="Chunks per answer.")] = 8,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Client processes.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="With --rate: how long.")] = 4.0,
    ttft_ms: Annotated[float, typer.Option(min=0)] = 20.0,
    itl_ms: Annotated[float, typer.Option(min=0)] = 5.0,
    as_json: Json = False,
) -> None:
    """Try the client alone, against the null server: what it can send, how exactly it sees. Exit status 1: too much."""
    import msgspec

    from perilune.bench.nullserver import Model
    from perilune.bench.selfcheck import alone, ceiling, lines

    model = Model(ttft_ms / 1000, itl_ms / 1000)
    if rate is None:
        tried = ceiling(tokens, processes)
    else:
        tried = [alone(rate, tokens, processes=processes, seconds=seconds, model=model)]
    if as_json:
        typer.echo(json.dumps([{**msgspec.to_builtins(each), "bound": each.bound} for each in tried], indent=2))
    else:
        typer.echo("\n".join(lines(tried)))
    raise typer.Exit(1 if rate is not None and tried[-1].bound else 0)


@bench.command("null-server")
def null_server(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    ttft_ms: Annotated[float, typer.Option(min=0)] = 20.0,
    itl_ms: Annotated[float, typer.Option(min=0)] = 5.0,
    slots: Annotated[int | None, typer.Option(min=1, help="Requests answered at once; the rest wait.")] = None,
) -> None:
    """Answer by the clock instead of a model: what a client measures here is the client."""
    import asyncio

    from perilune.bench.load import clock
    from perilune.bench.nullserver import Model, NullServer

    async def serve() -> None:
        async with NullServer(Model(ttft_ms / 1000, itl_ms / 1000, slots), port) as server:
            typer.echo(f"serving null at {server.url}")
            await asyncio.Event().wait()

    try:
        clock.run(serve())
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _points(file: Path, sweep: str | None, facts: list[str] | None, *, probe: bool = False) -> tuple[Point, ...]:
    from perilune.bench.plan.expand import expand
    from perilune.bench.spec.facts import doctor_facts, parse_facts
    from perilune.bench.spec.load import load_sweeps

    probed = doctor_facts() if probe else {}
    return expand(load_sweeps(file), sweep, {**probed, **parse_facts(facts or [])})
