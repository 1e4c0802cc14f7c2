"""`perilune generate MODEL PROMPT`: one answer on the terminal, without a server."""

from __future__ import annotations

from typing import Annotated

import typer


def generate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or `builtin`.")],
    prompt: Annotated[str, typer.Argument(help="Text; `-` reads standard input.")],
    chat: Annotated[bool, typer.Option(help="Wrap the prompt in the model's chat template.")] = True,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    max_context: Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.")] = None,
) -> None:
    """Print one answer, then how fast it came."""
    from perilune.engine.terminal import answer_once

    answer_once(
        model,
        prompt,
        chat=chat,
        sampling={"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed},
        settings={"dtype": dtype, "max_context": max_context, "max_running": 1},
    )
