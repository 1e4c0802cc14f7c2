"""`perilune demo`: plan, serve and talk to the built-in model, and print what was measured."""

from __future__ import annotations

import asyncio
import itertools

import httpx
from rich.console import Console
from rich.table import Table

from perilune.host.memory import available_memory
from perilune.models.hub import BUILTIN, resolve_config_only
from perilune.plan.device import Machine
from perilune.plan.folder import plan_folder
from perilune.plan.table import render
from perilune.server.demo import Exchange, ask, engine_numbers, running_server
from perilune.units import format_bytes, format_seconds

CONTEXT, RUNNING = 4096, 8
QUESTIONS = {
    "a question": "What is perilune?",
    "its subject": "What is KDA?",
    "arithmetic": "Anna has 14 apples and finds 9 more. How many apples does Anna have now?",
}
NEEDLE = "The code of the blue harbour is 4821."


def demo() -> None:
    """The tour in under a minute: the plan, real answers over HTTP, measured speed, planned beside allocated bytes."""
    asyncio.run(_tour(Console(highlight=False)))


async def _tour(console: Console) -> None:
    console.rule("[bold]plan[/]  before a byte of weights is loaded", align="left")
    machine = Machine(*available_memory())
    planned = plan_folder(resolve_config_only(BUILTIN), machine, context=CONTEXT, concurrency=RUNNING)
    console.print(render(planned))

    console.rule("[bold]serve[/]  perilune serve builtin", align="left")
    flags = ("--max-context", str(CONTEXT), "--max-running", str(RUNNING))
    async with running_server(BUILTIN, *flags) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        console.print(f"listening at {url}\n")
        questions = {**QUESTIONS, "a long text": long_question()}
        alone = {name: await _show(console, client, question) for name, question in questions.items()}
        together = await asyncio.gather(*(_finish(client, question) for question in [*QUESTIONS.values()] * 3))
        console.rule("[bold]measured[/]  on this machine, over HTTP", align="left")
        console.print(_speeds(alone, together))
        console.print(_memory(planned.cache_bytes, await engine_numbers(client)))


async def _show(console: Console, client: httpx.AsyncClient, question: str) -> Exchange:
    """Stream one answer to the terminal."""
    short = question if len(question) < 200 else f"{question[:60]} […] {question.splitlines()[-1]}"
    console.print("> ", style="bold", end="")
    console.print(short, style="bold", markup=False)
    shown, exchange = 0, Exchange(question)
    async for exchange in ask(client, question):
        console.print(exchange.answer[shown:], end="", markup=False)
        shown = len(exchange.answer)
    console.print("\n")
    return exchange


async def _finish(client: httpx.AsyncClient, question: str) -> Exchange:
    return [exchange async for exchange in ask(client, question)][-1]


def long_question(sentences: int = 80) -> str:
    """About a thousand tokens of small talk with one line worth finding, and a question for it."""
    times = ("In the morning", "At noon", "On Sunday", "Later", "In winter")
    people = ("keeper", "captain", "baker", "painter", "farmer", "guide", "sailor")
    deeds = ("walked along the shore", "counted the boats", "read a long letter", "lit a lamp", "watched the birds")
    talk = itertools.islice(itertools.product(times, people, deeds), sentences)
    text = [f"{time} the {who} {deed}." for time, who, deed in talk]
    text.insert(sentences // 3, NEEDLE)
    return f"Read this text. {' '.join(text)}\n\nWhat is the code of the blue harbour?"


def _speeds(alone: dict[str, Exchange], together: list[Exchange]) -> Table:
    grid = Table("", "prompt", "first token", "answer", "speed", box=None, header_style="dim", padding=(0, 3, 0, 0))
    for name, exchange in alone.items():
        grid.add_row(
            name,
            f"{exchange.prompt_tokens} tokens",
            format_seconds(exchange.first_token_seconds),
            f"{exchange.completion_tokens} tokens",
            f"{exchange.tokens_per_second:.0f} tokens/s",
        )
    tokens = sum(exchange.completion_tokens for exchange in together)
    seconds = max(e.last for e in together) - min(e.started for e in together)
    first = max(exchange.first_token_seconds for exchange in together)
    rate = f"{tokens / seconds:.0f} tokens/s in all"
    grid.add_row(f"{len(together)} at once", "", f"{format_seconds(first)} at worst", f"{tokens} tokens", rate)
    return grid


def _memory(planned: int, numbers: dict[str, float]) -> Table:
    allocated = int(numbers["cache_bytes_allocated"])
    equal = "[green]equal, to the byte[/]" if allocated == planned else "[red]not what was planned[/]"
    grid = Table("cache", "", box=None, header_style="dim", padding=(0, 3, 0, 0))
    grid.add_row("planned", f"{planned} bytes ({format_bytes(planned)})")
    grid.add_row("allocated", f"{allocated} bytes ({format_bytes(allocated)})  {equal}")
    grid.add_row("in use now", f"{int(numbers['pages_used'])} pages, {int(numbers['slots_used'])} slots")
    return grid
