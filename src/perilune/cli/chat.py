"""`perilune chat MODEL`: a conversation on the terminal."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from perilune.cli.printing import print_answer
from perilune.cli.report import report
from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.request import SamplingParams
from perilune.engine.session import Session
from perilune.errors import EngineDeadError, PeriluneError


def chat(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or `builtin`.")] = "builtin",
    system: Annotated[str | None, typer.Option(help="A system message to start from.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    max_context: Annotated[int | None, typer.Option(help="Tokens of the whole conversation.")] = None,
    tp: Annotated[int, typer.Option("--tp", "--tensor-parallel-size", min=1, help="Processes that share it.")] = 1,
    ep: Annotated[bool, typer.Option("--ep", help="With --tp: experts are shared whole.")] = False,
) -> None:
    """Talk to a model; /new starts over, /quit or Ctrl-D ends."""
    config = EngineConfig(model, dtype=dtype, max_context=max_context, max_running=1, tp=tp, ep=ep)
    asyncio.run(_converse(config, SamplingParams(max_tokens=max_tokens, temperature=temperature), system))


async def _converse(config: EngineConfig, params: SamplingParams, system: str | None) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(f"[dim]loading {config.model}[/]")
    engine = await AsyncEngine.start(config)
    try:
        session = Session(engine, system=system)
        console.print("[dim]/new starts over, /quit ends[/]")
        while (text := await asyncio.to_thread(_read)) is not None:
            if text == "/new":
                session = Session(engine, system=system)
            elif text:
                await _exchange(session, text, params)
    finally:
        await engine.close()


async def _exchange(session: Session, text: str, params: SamplingParams) -> None:
    """One turn. A refused turn is reported and the conversation goes on; a dead engine ends it."""
    try:
        await print_answer(session, text, params)
    except EngineDeadError:
        raise
    except PeriluneError as error:
        report(error)


def _read() -> str | None:
    """One line from the user; None at the end."""
    try:
        text = input("> ").strip()
    except EOFError:
        return None
    return None if text in ("/quit", "/exit") else text
