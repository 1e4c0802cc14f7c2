"""A sweep file as a whole: recipes, workloads, and the sweeps that combine them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from perilune.bench.spec.recipe import Hardware, Recipe
from perilune.bench.spec.workload import Count, Load, NamedWorkload, Positive, Workload
from perilune.files.strict import Strict

Scalar = str | int | float | bool | None


class Ladder(Strict):
    """`{ladder: [4, 100], factor: 2}`: 4, 8, 16, 32, 64, 100. The end is always included."""

    ladder: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    factor: Annotated[float, Field(gt=1, strict=False)] = 2.0


class Linear(Strict):
    """`{linear: [1, 10], step: 4}`: 1, 5, 9, 10. The end is always included."""

    linear: Annotated[list[Annotated[float, Field(strict=False)]], Field(min_length=2, max_length=2)]
    step: Positive


def _axis_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "linear" if "linear" in value else "ladder"
    if isinstance(value, Ladder | Linear):
        return type(value).__name__.lower()
    return "list" if isinstance(value, list) else "one"


Axis = Annotated[
    Annotated[Scalar, Tag("one")]
    | Annotated[Annotated[list[Scalar | list[Scalar] | dict[str, Any]], Field(min_length=1)], Tag("list")]
    | Annotated[Ladder, Tag("ladder")]
    | Annotated[Linear, Tag("linear")],
    Discriminator(_axis_kind),
]
Axes = dict[str, Axis]
"""A product of axes. A name with `+`, as `tp+ep: [[8, 1], [4, 4]]`, is several names that move together."""


class Slo(Strict):
    """Limits one request has to keep, all of them, to count as good."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    e2e_ms: Positive | None = None


class Eval(Strict):
    """A question set asked at the point's own concurrency. `floor` is the least share of right answers."""

    kind: Literal["arithmetic", "retrieval", "file", "lm-eval"]
    task: str | None = Field(default=None, description="kind: lm-eval - the task, as gsm8k.")
    include: str | None = Field(default=None, description="kind: lm-eval - a folder of task files of one's own.")
    fewshot: Annotated[int, Field(ge=0)] | None = Field(default=None, description="kind: lm-eval - solved examples.")
    path: str | None = Field(default=None, description="kind: file - JSON lines with `question` and `answer`.")
    questions: Count = 50
    length: Count = Field(default=512, description="kind: retrieval - words of text around the needle.")
    depth: Annotated[float, Field(ge=0, le=1, strict=False)] | None = Field(
        default=None, description="kind: retrieval - where the needle lies, 0 the beginning; anywhere unless given."
    )
    floor: Annotated[float, Field(ge=0, le=1, strict=False)] | None = None
    max_tokens: Count = 256
    seed: int = 0

    @model_validator(mode="after")
    def _has_questions(self) -> Eval:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("kind: file, and only it, needs a path")
        if (self.kind == "lm-eval") != (self.task is not None):
            raise ValueError("kind: lm-eval, and only it, needs a task")
        return self


class Target(Strict):
    """A server that runs already. The key is read from the environment variable named by `api_key_env`."""

    url: str
    model: str | None = None
    api_key_env: str | None = None


class Sweep(Strict):
    """Points to measure: the product (or a union of products) of `axes`, less what `where` rejects."""

    recipe: str | None = None
    target: Target | None = None
    hardware: Hardware = Hardware()
    workload: NamedWorkload
    load: Load
    axes: Axes | Annotated[list[Axes], Field(min_length=1)] = Field(default_factory=dict)
    where: str | None = None
    repeats: Annotated[int, Field(ge=1, le=1000)] = 3
    warmup: Annotated[int, Field(ge=0)] = Field(
        default=4, description="Requests before the clock starts, none like another."
    )
    processes: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="Client processes.")
    timeout_s: Positive = Field(default=600.0, description="Longest a request may take.")
    max_failed: Annotated[float, Field(ge=0, le=1, strict=False)] = Field(
        default=0.0, description="Share above which a run failed."
    )
    slo: Slo = Slo()
    evals: list[Eval] = Field(default_factory=list)
    labels: dict[str, Scalar] = Field(
        default_factory=dict, description="Words carried into results; no part of the fingerprint."
    )

    @model_validator(mode="after")
    def _one_server(self) -> Sweep:
        if (self.recipe is None) == (self.target is None):
            raise ValueError("a sweep needs either a recipe, to start a server, or a target, to use one")
        return self


class SweepFile(Strict):
    """The whole file."""

    version: Literal[1] = 1
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    workloads: dict[str, Workload] = Field(default_factory=dict)
    sweeps: Annotated[dict[str, Sweep], Field(min_length=1)]
