"""`perilune ops`: which backend serves which op, and why others refused; kernels compiled for GPUs, present or not."""

from __future__ import annotations

import time
from dataclasses import asdict
from json import dumps
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from perilune.cli.report import report
from perilune.errors import PeriluneError, UnsupportedError
from perilune.ops.select import Needs, choose


def ops(
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    aot: Annotated[
        str | None,
        typer.Option("--aot", help="Compile every GPU kernel for these architectures, gfx1151,gfx942,gfx950,sm_90."),
    ] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Compile every GPU kernel for the GPU here, or --arch.")] = False,
    arch: Annotated[str | None, typer.Option("--arch", help="With --warm: an architecture that is not here.")] = None,
    compile_seconds: Annotated[int, typer.Option(min=1, help="With --warm: how long one kernel may take.")] = 300,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --aot: one weight format and one model's attention only.")
    ] = False,
) -> None:
    """Print the kernels this host runs bfloat16 models on; float32 stays on the reference, which is exact."""
    console = Console(highlight=False)
    try:
        wrong = None if aot is None else _aot(console, aot.split(","), json, quick)
        if warm:
            _warm(console, arch, compile_seconds)
    except (PeriluneError, ValueError, RuntimeError) as error:
        report(error if isinstance(error, PeriluneError) else UnsupportedError(str(error)))
        raise typer.Exit(1) from error
    if wrong is not None or warm:
        raise typer.Exit(1 if wrong else 0)
    choices = choose(Needs()).choices
    if json:
        console.print_json(data=[asdict(choice) for choice in choices])
        return
    grid = Table("op", "what", "backend", "refused", box=None, header_style="dim")
    for choice in choices:
        refused = "; ".join(f"{backend}: {reason}" for backend, reason in choice.refused)
        grid.add_row(choice.op, choice.what, choice.backend, f"[dim]{refused}[/]")
    console.print(grid)


def _aot(console: Console, names: list[str], json: bool, quick: bool) -> int:
    """The report; 1 if anything is wrong with any kernel."""
    from triton import __version__ as version

    from perilune.ops.gpu.aot import builds
    from perilune.ops.gpu.arch import named
    from perilune.ops.gpu.cases import launches

    arches, rows, wrong = [named(name) for name in names], [], 0
    grid = Table("kernel", "format", "target", "tile", "registers", "spills", "LDS", "matrix", "", box=None)
    for arch in arches:
        for build in builds(launches(arch, quick), arch):
            problems = build.problems(arch)
            wrong += bool(problems)
            row = {**asdict(build), "problems": problems}
            del row["seconds"]  # another number each time
            rows.append(row)
            tile = " ".join(f"{name}{size}" for name, size in build.tile.items()) + f" x{build.warps}"
            matrix = f"{build.matrix} {build.unit}" if build.matrix else ""
            numbers = (str(build.registers), str(build.spills + build.scratch), str(build.shared))
            grid.add_row(
                build.kernel, build.form, build.target, tile, *numbers, matrix, f"[red]{'; '.join(problems)}[/]"
            )
    if json:
        lines = ",\n".join(dumps(row) for row in rows)
        print(f'{{"triton": {dumps(version)}, "kernels": [\n{lines}\n]}}')
    else:
        console.print(grid)
        console.print(f"{len(rows)} kernels for {', '.join(names)}; {wrong} with problems")
    return int(wrong > 0)


def _warm(console: Console, name: str | None, seconds: int) -> None:
    from perilune.host.cores import compute_threads
    from perilune.ops.gpu.aot import distinct
    from perilune.ops.gpu.arch import named, present
    from perilune.ops.gpu.cache import compile_cache
    from perilune.ops.gpu.cases import launches
    from perilune.ops.gpu.compiler import Compiler, compile_all

    arch = named(name) if name else present()
    if isinstance(arch, str):
        raise UnsupportedError("There is nothing to compile for.", f"{arch[0].upper()}{arch[1:]}.", "Name one: --arch.")
    where, started = compile_cache(), time.perf_counter()
    found, jobs = distinct(launches(arch), arch), min(8, compute_threads()[0])
    compile_all(found, arch, [Compiler(seconds) for _ in range(jobs)])
    console.print(f"{len(found)} kernels for {arch.name} in {time.perf_counter() - started:.0f} s, kept in {where}")
