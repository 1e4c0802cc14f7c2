"""`perilune doctor`: is this host set up to serve models. Reads, never changes."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Action(StrEnum):
    snapshot = "snapshot"


class Choice(StrEnum):
    auto = "auto"
    strix_halo = "strix-halo"
    mi300x = "mi300x"
    mi355x = "mi355x"
    nvidia = "nvidia"
    cpu = "cpu"


def doctor(
    action: Annotated[Action | None, typer.Argument(help="snapshot: record what the rules read, for a report.")] = None,
    file: Annotated[Path | None, typer.Argument(help="snapshot: the .tar.gz to write.", dir_okay=False)] = None,
    target: Annotated[Choice, typer.Option(help="What the host is to be good for.")] = Choice.auto,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    sysroot: Annotated[Path | None, typer.Option(help="Examine a recorded host: a folder or a snapshot.")] = None,
    fix_script: Annotated[Path | None, typer.Option(help="Write the fixes as a shell script, to read and run.")] = None,
    need: Annotated[str | None, typer.Option(help="Memory a plan needs on the GPU, like 64GiB.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs a model is to run on; all eight of an Instinct.")
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--with", help="NAME=FILE: output of dmesg, docker-inspect, hip-total, ... that you ran."),
    ] = None,
) -> None:
    """Examine a host. Exit status 0 if nothing is worse than info, 1 with warnings or unknowns, 2 with failures."""
    from rich.console import Console

    from perilune.errors import ConfigError
    from perilune.host.doctor import diagnose
    from perilune.host.given import read_given
    from perilune.host.live import Live
    from perilune.host.report import render, to_json
    from perilune.host.rule import Target
    from perilune.host.script import fix_script as script_of
    from perilune.host.snapshot import opened, record
    from perilune.host.sysroot import Recorded, Source, Sysroot
    from perilune.host.view import Ask
    from perilune.units import parse_bytes

    with ExitStack() as stack:
        source: Source = Live() if sysroot is None else Recorded(stack.enter_context(opened(sysroot)))
        root = Sysroot(source, read_given(given or []))
        if action is Action.snapshot:
            if file is None:
                raise ConfigError("snapshot needs a file to write.", fix="perilune doctor snapshot host.tar.gz")
            typer.echo(f"{record(root, file)} readings in {file}; look inside before you send it: tar xzOf {file}")
            return
        ask = Ask(None if need is None else parse_bytes(need), gpus)
        report = diagnose(root, None if target is Choice.auto else Target(target), ask)
    console = Console(highlight=False)
    if json:
        console.print_json(data=to_json(report))
    else:
        console.print(render(report))
    if fix_script is not None:
        fix_script.write_text(script_of(report, fix_script.name))
        Console(stderr=True, highlight=False).print(f"{fix_script} is written; read it, then: sudo sh {fix_script}")
    raise typer.Exit(report.exit_status)
