"""An answer on the terminal while it comes, and one line on how fast it came."""

from __future__ import annotations

import sys

from rich.console import Console

from perilune.engine.request import SamplingParams
from perilune.engine.session import Session
from perilune.units import format_seconds


async def print_answer(session: Session, text: str, params: SamplingParams) -> None:
    """Stream to stdout; the line of numbers goes to stderr, so that stdout can be piped."""
    async for piece in session.ask(text, params):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    timing = session.timing
    Console(stderr=True, highlight=False).print(
        f"[dim]{timing.prompt_tokens} prompt tokens, first token after {format_seconds(timing.first_token_seconds)}, "
        f"{timing.completion_tokens} tokens at {timing.tokens_per_second:.0f} tokens/s[/]"
    )
