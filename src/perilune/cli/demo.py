"""`perilune demo`: plan, serve and talk to the built-in model, and print what was measured."""

from __future__ import annotations

import asyncio

import httpx
from rich.console import Console
from rich.table import Table

from perilune.host.memory import available_memory
from perilune.models.hub import BUILTIN, resolve_config_only
from perilune.plan.folder import plan_folder
from perilune.plan.table import render
from perilune.server.demo import Exchange, ask, engine_numbers, running_server
from perilune.units import format_bytes, format_seconds

CONTEXT, RUNNING = 4096, 8
QUESTIONS = (
    "What is perilune?",
    "Why does a hybrid model need two kinds of cache?",
    "What does KDA stand for?",
    "Mia has 14 apples and buys 9 more. How many apples does Mia have now?",
)


def demo() -> None:
    """The tour in under a minute: the plan, real answers over HTTP, measured speed, planned beside allocated bytes."""
    asyncio.run(_tour(Console(highlight=False)))


async def _tour(console: Console) -> None:
    console.rule("[bold]plan[/]  before a byte of weights is loaded", align="left")
    memory, source = available_memory()
    planned = plan_folder(
        resolve_config_only(BUILTIN), context=CONTEXT, concurrency=RUNNING, memory=memory, memory_source=source
    )
    console.print(render(planned))

    console.rule("[bold]serve[/]  perilune serve builtin", align="left")
    flags = ("--max-context", str(CONTEXT), "--max-running", str(RUNNING))
    async with running_server(BUILTIN, *flags) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        console.print(f"listening at {url}\n")
        alone = [await _show(console, client, question) for question in (*QUESTIONS, _needle())]
        together = await asyncio.gather(*(_finish(client, question) for question in QUESTIONS * 2))
        console.rule("[bold]measured[/]  on this machine, over HTTP", align="left")
        console.print(_speeds(alone, together))
        console.print(_memory(planned.cache_bytes, await engine_numbers(client)))


async def _show(console: Console, client: httpx.AsyncClient, question: str) -> Exchange:
    """Stream one answer to the terminal."""
    short = question if len(question) < 200 else f"{question[:60]} … {question[-90:]}"
    console.print(f"[bold]> {short}[/]", markup=True)
    shown, exchange = 0, Exchange(question)
    async for exchange in ask(client, question):
        console.print(exchange.answer[shown:], end="", markup=False)
        shown = len(exchange.answer)
    console.print("\n")
    return exchange


async def _finish(client: httpx.AsyncClient, question: str) -> Exchange:
    exchange = Exchange(question)
    async for exchange in ask(client, question):
        pass
    return exchange


def _needle() -> str:
    """A long prompt with one line worth remembering."""
    return "To be replaced by the retrieval sample of the built-in model."


def _speeds(alone: list[Exchange], together: list[Exchange]) -> Table:
    grid = Table("", "prompt", "first token", "answer", "speed", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for exchange in alone:
        grid.add_row(
            exchange.question[:34] + "…",
            f"{exchange.prompt_tokens} tokens",
            format_seconds(exchange.first_token_seconds),
            f"{exchange.completion_tokens} tokens",
            f"{exchange.tokens_per_second:.0f} tokens/s",
        )
    tokens = sum(exchange.completion_tokens for exchange in together)
    seconds = max(e.last for e in together) - min(e.started for e in together)
    first = max(exchange.first_token_seconds for exchange in together)
    grid.add_row(
        f"{len(together)} at once", "", format_seconds(first), f"{tokens} tokens", f"{tokens / seconds:.0f} tokens/s in all"
    )
    return grid


def _memory(planned: int, numbers: dict[str, float]) -> Table:
    allocated = int(numbers["cache_bytes_allocated"])
    grid = Table("cache", "", box=None, header_style="dim", padding=(0, 2, 0, 0))
    grid.add_row("planned", f"{planned} bytes ({format_bytes(planned)})")
    equal = "[green]equal, to the byte[/]" if allocated == planned else "[red]not what was planned[/]"
    grid.add_row("allocated", f"{allocated} bytes ({format_bytes(allocated)})  {equal}")
    grid.add_row("in use now", f"{int(numbers['pages_used'])} pages, {int(numbers['slots_used'])} slots")
    return grid

