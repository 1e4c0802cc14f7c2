"""A real `perilune route` as a child process, and a client of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import live
from openai import OpenAI

SECONDS = 60.0


def start_router(
    folder: Path, *flags: str, variables: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """Returns once it serves: the process and its URL."""
    log = folder / "route.log"
    command = [sys.executable, "-m", "perilune", "route", "--port", "0", "--health-seconds", "0.2", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(variables or {})}
        )
    end = time.monotonic() + SECONDS
    while not (found := re.search(r"serving .* at (http://\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    return process, found.group(1)


def client(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=SECONDS)


def say(openai: OpenAI, text: str, tokens: int = 24, eos: bool = False) -> list[str]:
    made = openai.chat.completions.create(
        model=live.MODEL, messages=[{"role": "user", "content": text}], max_tokens=tokens, temperature=0, stream=True,
        extra_body={"ignore_eos": not eos},
    )  # fmt: skip
    return [piece.choices[0].delta.content or "" for piece in made if piece.choices]
