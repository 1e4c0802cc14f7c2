"""A request and its answer, as the rest of perilune sees them. Imports no torch.

Field names of SamplingParams are vLLM's, so that a script moves over unchanged.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from perilune.errors import RequestError, nearest

FinishReason = Literal["stop", "length", "abort", "error"]
MAX_LOGPROBS = 20
MAX_BIAS = 100


class _CheckedFields(type):
    """Turns an unknown keyword into a RequestError that names the nearest valid field."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        valid = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]  # always a dataclass here
        for name in kwargs:
            if name not in valid:
                raise RequestError(f"Unknown sampling field {name!r}.", nearest(name, valid), param=name)
        return super().__call__(*args, **kwargs)


@dataclass(frozen=True)
class Grammar:
    """Constrained output: `kind` and the text that goes with it (a JSON schema, a regex, an EBNF grammar).

    `compact`: JSON without white space between its tokens, for what a program reads and nobody else.
    """

    kind: Literal["json_schema", "json_object", "regex", "ebnf"]
    text: str = ""
    compact: bool = False


class Lend(msgspec.Struct, tag=True, frozen=True):
    """Read the prompt for another engine: draw the first token, keep the cache, give a ticket for it.

    `early`: the ticket comes as soon as the prompt is admitted, so that its pages can be read while others compute.
    """

    early: bool = False


class Borrow(msgspec.Struct, tag=True, frozen=True):
    """Take the prompt's cache from the engine that gave `ticket`. `fallback`, should that fail: None, as the engine is
    set up, "prefill", compute the prompt here, or "error"."""

    ticket: str
    fallback: Literal["prefill", "error"] | None = None


Handover = Lend | Borrow


class Lent(msgspec.Struct, frozen=True):
    """The answer to Lend: a `ticket` for the cache of `tokens` tokens that `engine` keeps."""

    ticket: str
    engine: str
    tokens: int


@dataclass(frozen=True)
class SamplingParams(metaclass=_CheckedFields):
    """How to turn logits into tokens.

    `temperature=0` is greedy. `top_k` 0 or -1 means all. `seed=None` draws a fresh seed; with a seed, a request's
    tokens do not depend on the batch it ran in. `logprobs=k` returns the k best per token beside the sampled one;
    `prompt_logprobs=k` the same for the prompt, which is then computed whole, whatever of it is cached.
    `max_tokens=0` computes the prompt alone.
    Raises RequestError, with `param` set, for a value out of range.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        stop: Any = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", {int(k): float(v) for k, v in (self.logit_bias or {}).items()})
        for name in ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs"):
            _whole(name, getattr(self, name))
        limits: tuple[tuple[str, float, float], ...] = (
            ("n", 1, 128), ("min_tokens", 0, float("inf")), ("temperature", 0, 100), ("min_p", 0, 1),
            ("top_k", -1, float("inf")), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2),
        )  # fmt: skip
        for name, low, high in limits:
            _within(name, getattr(self, name), low, high)
        for name, high in (("top_p", 1), ("repetition_penalty", 10)):
            _within(name, getattr(self, name), 0, high)
            if getattr(self, name) == 0:
                raise RequestError(f"{name} must be more than 0.", param=name)
        if self.max_tokens is not None and self.max_tokens < 0:
            raise RequestError(f"max_tokens must be at least 0, not {self.max_tokens}.", param="max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            if (best := getattr(self, name)) is not None:
                _within(name, best, 0, MAX_LOGPROBS)
        if self.seed is not None:
            _within("seed", self.seed, -(2**63), 2**64 - 1)
        for bias in self.logit_bias.values():
            _within("logit_bias", bias, -MAX_BIAS, MAX_BIAS)
        if any(not s for s in self.stop):
            raise RequestError("A stop string is empty.", "It would end every answer at once.", param="stop")


def _whole(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise RequestError(f"{name} must be a whole number, not {value!r}.", param=name)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low:g} and {high:g}, not {value!r}.", param=name)


@dataclass(frozen=True)
class TokenLogprobs:
    """One sampled token: its log probability and the best alternatives, best first, as (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PromptLogprobs(TokenLogprobs):
    """One token of a prompt. `rank` 1: nothing was likelier."""

    rank: int = 1


@dataclass(frozen=True)
class TextDelta:
    """What one sequence of a request gained: `text` is whole characters, with stop strings already cut off.

    `prompt_logprobs`, if asked for, come with the first delta: one entry per token of the prompt, None for the first.
    `lent` is the answer to Lend; `remote`, with the deltas of a Borrow, says whether the cache came from afar.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: tuple[PromptLogprobs | None, ...] | None = None
    lent: Lent | None = None
    remote: bool | None = None


@dataclass(frozen=True)
class Completion:
    """One finished answer, as `LLM.generate` returns it. The first of `prompt_logprobs` is None: nothing is before."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    stop_reason: int | str | None = None
    prompt_logprobs: list[PromptLogprobs | None] | None = None
