"""The `perilune` command: finds the asked command's file and imports only that, so that each starts fast."""

from __future__ import annotations

import importlib
import sys

import typer

from perilune import __version__
from perilune.errors import PeriluneError

COMMANDS = (
    "doctor", "plan", "recipe", "deploy", "serve", "route", "fleet", "generate", "chat", "demo", "bench", "smoke",
    "ops", "cache", "pd",
)  # fmt: skip


def build(only: str | None = None) -> typer.Typer:
    """The application, with one command or all of them (for --help)."""
    app = typer.Typer(
        name="perilune",
        help="Serve hybrid linear-attention language models (KDA + MLA, mixture of experts) at long context.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name in COMMANDS if only is None else (only,):
        module = importlib.import_module(f"perilune.cli.{name}")
        command = getattr(module, name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)

    @app.callback(invoke_without_command=True)
    def version(show: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if show:
            typer.echo(f"perilune {__version__}")
            raise typer.Exit

    return app


def main() -> None:
    """Run; a PeriluneError becomes three readable lines and exit status 1."""
    first = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    try:
        build(first if first in COMMANDS else None)(prog_name="perilune")
    except PeriluneError as error:
        from perilune.cli.report import report

        report(error)
        sys.exit(1)
