"""How long prompts and answers are, in tokens: always a distribution with its bounds written out.

"Random range ratio" means three things in three tools, under one name. Here it is written with its meaning and
becomes the uniform distribution it stands for.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from perilune.files.strict import Strict

Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
Pair = Annotated[list[Tokens], Field(min_length=2, max_length=2)]


class Uniform(Strict):
    """`{uniform: [low, high]}`: every whole number from low to high, both included, equally often."""

    uniform: Pair

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError(f"{self.uniform[0]} is above {self.uniform[1]}; write [low, high]")
        return self


class NormalOf(Strict):
    """Mean and deviation before clipping to [min, max]."""

    mean: Annotated[float, Field(gt=0, strict=False)]
    std: Annotated[float, Field(ge=0, strict=False)]
    min: Tokens = 1
    max: Tokens


class Normal(Strict):
    """`{normal: {mean, std, min, max}}`, rounded and clipped."""

    normal: NormalOf


class LogNormalOf(Strict):
    """`median` in tokens; `sigma` the deviation of the logarithm; clipped to [min, max]."""

    median: Annotated[float, Field(gt=0, strict=False)]
    sigma: Annotated[float, Field(ge=0, le=5, strict=False)]
    min: Tokens = 1
    max: Tokens


class LogNormal(Strict):
    """`{lognormal: {median, sigma, min, max}}`: what lengths in traces look like."""

    lognormal: LogNormalOf


class ChoiceOf(Strict):
    """`weights` need not sum to one."""

    values: Annotated[list[Tokens], Field(min_length=1)]
    weights: list[Annotated[float, Field(ge=0, strict=False)]] | None = None

    @model_validator(mode="after")
    def _weighed(self) -> ChoiceOf:
        if self.weights is not None and (len(self.weights) != len(self.values) or sum(self.weights) <= 0):
            raise ValueError("weights need one number for each value, and not only zeros")
        return self


class Choice(Strict):
    """`{choice: {values: [128, 4096], weights: [9, 1]}}`."""

    choice: ChoiceOf


class RangeRatioOf(Strict):
    """`of` is the nominal length; `meaning` whose definition of `ratio` is meant."""

    of: Tokens
    ratio: Annotated[float, Field(ge=0, le=1, strict=False)]
    meaning: Literal["inferencex", "vllm", "sglang"]


class RangeRatio(Strict):
    """`{range_ratio: {of: 1024, ratio: 0.8, meaning: inferencex}}`."""

    range_ratio: RangeRatioOf

    def bounds(self) -> tuple[int, int]:
        """Lowest and highest length.

        inferencex, sglang: [ratio·L, L]. vllm since 0.8.4: [(1 - ratio)·L, (1 + ratio)·L].
        """
        length, ratio = self.range_ratio.of, self.range_ratio.ratio
        if self.range_ratio.meaning == "vllm":
            return max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio))
        return max(1, int(length * ratio)), length


def _kind(value: Any) -> str | None:
    if isinstance(value, int):
        return "constant"
    if isinstance(value, dict):
        return next((key for key in value if key in _KINDS), next(iter(value), None))
    return next((name for name, kind in _KINDS.items() if isinstance(value, kind)), None)


_KINDS: dict[str, type[Strict]] = {
    "uniform": Uniform,
    "normal": Normal,
    "lognormal": LogNormal,
    "choice": Choice,
    "range_ratio": RangeRatio,
}

Length = Annotated[
    Annotated[Tokens, Tag("constant")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Normal, Tag("normal")]
    | Annotated[LogNormal, Tag("lognormal")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[RangeRatio, Tag("range_ratio")],
    Discriminator(
        _kind,
        custom_error_type="length",
        custom_error_message="a length is a number of tokens, or one of {uniform: …}, {normal: …}, {lognormal: …}, "
        "{choice: …}, {range_ratio: …}",
    ),
]


def draw(length: Length, rng: np.random.Generator, count: int) -> list[int]:
    """`count` lengths in tokens, each at least 1."""
    match length:
        case int():
            return [length] * count
        case Uniform():
            low, high = length.uniform
            found = rng.integers(low, high, count, endpoint=True)
        case RangeRatio():
            low, high = length.bounds()
            found = rng.integers(low, high, count, endpoint=True)
        case Normal():
            of = length.normal
            found = np.clip(np.rint(rng.normal(of.mean, of.std, count)), of.min, of.max).astype(int)
        case LogNormal():
            log = length.lognormal
            found = np.clip(np.rint(rng.lognormal(math.log(log.median), log.sigma, count)), log.min, log.max).astype(
                int
            )
        case Choice():
            weights = length.choice.weights
            share = None if weights is None else np.asarray(weights) / sum(weights)
            found = rng.choice(length.choice.values, count, p=share)
    return [int(value) for value in found]


def longest(length: Length) -> int:
    """The most tokens a draw can have."""
    match length:
        case int():
            return length
        case Uniform():
            return length.uniform[1]
        case RangeRatio():
            return length.bounds()[1]
        case Normal():
            return length.normal.max
        case LogNormal():
            return length.lognormal.max
        case Choice():
            return max(length.choice.values)


def mean(length: Length) -> float:
    """Expected tokens; clipping of the normal and lognormal ignored."""
    match length:
        case int():
            return float(length)
        case Uniform() | RangeRatio():
            low, high = length.bounds() if isinstance(length, RangeRatio) else length.uniform
            return (low + high) / 2
        case Normal():
            return length.normal.mean
        case LogNormal():
            return length.lognormal.median * math.exp(length.lognormal.sigma**2 / 2)
        case Choice():
            of = length.choice
            weights = of.weights or [1.0] * len(of.values)
            return sum(v * w for v, w in zip(of.values, weights, strict=True)) / sum(weights)
