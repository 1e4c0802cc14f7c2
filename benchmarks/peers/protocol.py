"""What a measuring process offers, and the lines it speaks: one JSON object per line, a command in, its answer out.

    {"do": "load", ...}                                              -> {"seconds": 9.1}
    {"do": "prefill" | "first token" | "decode", "tokens": 512, ...}  -> {"seconds": 1.4}
    {"do": "logits", "tokens": [...], "file": "x.npy"}               -> {}
    {"do": "state"}                                                  -> {"peak_bytes": ..., "about": ...}

A command that fails is answered with {"error": ...}. Whatever a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """One engine with a model loaded. Times are seconds of the measured part alone."""

    about: str

    def prefill(self, tokens: int, depth: int, seed: int) -> float:
        """`tokens` new tokens after `depth` old ones, until the next token is sampled."""

    def decode(self, tokens: int, depth: int, sequences: int, seed: int) -> float:
        """`tokens` steps of `sequences` sequences that share their first `depth` tokens and then differ."""

    def logits(self, tokens: list[int]) -> Any:
        """float32 [T, vocab]."""

    def report(self) -> dict[str, Any]:
        """Anything more to tell about the time since the last report."""


def peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most memory this process had resident (VmHWM): its own, and pages of files it had mapped."""
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{status} has no VmHWM.")


def serve(load: Callable[..., Engine]) -> None:
    """Answer commands from stdin until it ends. `load` makes the engine from the arguments of the first command."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        command = json.loads(line)
        do = command.pop("do")
        try:
            if do == "load":
                started = time.perf_counter()
                engine = load(**command)
                answer: dict[str, Any] = {"seconds": time.perf_counter() - started}
            else:
                assert engine is not None, "load comes first"
                answer = _answer(engine, do, command)
        except Exception as error:  # whatever it is, the parent must hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(engine: Engine, do: str, command: dict[str, Any]) -> dict[str, Any]:
    if do in ("prefill", "first token"):
        return {"seconds": engine.prefill(command["tokens"], command["depth"], command["seed"])}
    if do == "decode":
        return {"seconds": engine.decode(**command)}
    if do == "logits":
        import numpy as np

        np.save(command["file"], engine.logits(command["tokens"]))
        return {}
    assert do == "state", do
    return {"peak_bytes": peak_bytes(), "about": engine.about, **engine.report()}
