"""Where two servers part ways: the same prompts, greedily answered by both, compared token by token.

A cheap and exact probe for what accuracy on questions shows late: a cache that returns another request's state, a
handed-over prompt that lost a page, a kernel that rounds otherwise. Identical answers up to a near-tie are one engine's
arithmetic; a first difference with a wide gap between the two tokens is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from perilune.bench.load.prompts import generator
from perilune.errors import ConfigError


@dataclass(frozen=True)
class Answered:
    """Tokens as text, with the log probability of each and of the best other one."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    gaps: tuple[float | None, ...]


@dataclass(frozen=True)
class Divergence:
    """`index` is the first token that differs, None if none does; `gap` how far apart the two best were there."""

    prompt: int
    tokens: int
    index: int | None
    gap: float | None


def prompts(count: int, length: int, vocabulary: tuple[int, int] = (100, 800), seed: int = 0) -> list[list[int]]:
    """Token ids, the same for the same arguments."""
    rng = generator("divergence", seed)
    return [[int(i) for i in rng.integers(*vocabulary, length)] for _ in range(count)]


def ask(url: str, model: str, prompt: list[int], tokens: int, headers: dict[str, str] | None = None) -> Answered:
    """One greedy answer with its log probabilities. Raises ConfigError for a server that gives none."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 2, "ignore_eos": True}
    address = url.rstrip("/").removesuffix("/v1") + "/v1/completions"
    try:
        answer = httpx.post(address, json=body, headers=headers, timeout=600).raise_for_status().json()
        said = answer["choices"][0]["logprobs"]
        others = [_gap(each) for each in said["top_logprobs"]]
        return Answered(tuple(said["tokens"]), tuple(said["token_logprobs"]), tuple(others))
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(
            f"{address} gave no log probabilities.", f"{error!r}.", "The probe needs completions with logprobs."
        ) from error


def compare(prompt: int, one: Answered, other: Answered) -> Divergence:
    """The first difference. A shorter answer differs where it ends."""
    for index, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if a != b:
            return Divergence(prompt, len(one.tokens), index, one.gaps[index])
    if len(one.tokens) != len(other.tokens):
        return Divergence(prompt, len(one.tokens), min(len(one.tokens), len(other.tokens)), None)
    return Divergence(prompt, len(one.tokens), None, None)


def probe(old: tuple[str, str], new: tuple[str, str], asked: Sequence[list[int]], tokens: int = 64) -> list[Divergence]:
    """`old` and `new` are (url, model); each prompt is asked of both. Raises ConfigError as `ask`."""
    return [compare(i, ask(*old, prompt, tokens), ask(*new, prompt, tokens)) for i, prompt in enumerate(asked)]


def _gap(top: dict[str, Any] | None) -> float | None:
    best = sorted((float(value) for value in (top or {}).values()), reverse=True)
    return best[0] - best[1] if len(best) > 1 else None
