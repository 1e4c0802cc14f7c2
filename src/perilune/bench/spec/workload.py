"""What is asked: prompts made up, sessions of several turns, or a recorded trace."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from perilune.bench.spec.lengths import Length
from perilune.files.strict import Strict

Positive = Annotated[float, Field(gt=0, strict=False)]
Count = Annotated[int, Field(ge=1)]
CacheState = Literal["cold", "warm", "defeated", "any"]


class _Asked(Strict):
    """What all workloads share."""

    endpoint: Literal["completions", "chat"] = Field(
        default="completions", description="completions sends token ids, so lengths are exact; chat sends words."
    )
    temperature: Annotated[float, Field(ge=0, le=2, strict=False)] = 0.0
    ignore_eos: bool = Field(
        default=True, description="Answers run to their full length: for speed, never for accuracy."
    )
    vocabulary: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [100, 1000], description="Token ids prompts are drawn from: [low, high), sent as ids."
    )
    body: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Further fields of each request."
    )
    seed: int = 0

    @model_validator(mode="after")
    def _some_vocabulary(self) -> _Asked:
        if self.vocabulary[0] >= self.vocabulary[1]:
            raise ValueError(f"vocabulary [{self.vocabulary[0]}, {self.vocabulary[1]}) is empty")
        return self


class SharedPrefix(Strict):
    """Beginnings several prompts share: `groups` of them, group k chosen in proportion to 1 / k^zipf."""

    length: Length
    groups: Count = 1
    zipf: Annotated[float, Field(ge=0, le=5, strict=False)] = 0.0


class Random(_Asked):
    """Independent requests with drawn lengths. `input` counts the shared prefix."""

    kind: Literal["random"] = "random"
    input: Length
    output: Length
    prefix: SharedPrefix | None = None
    cache: CacheState = Field(
        default="defeated",
        description="defeated: no prompt begins like another. cold: nothing cached at the start. "
        "warm: shared prefixes are sent before the clock starts. Each is checked against the server's counters.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Random:
        if self.prefix is not None and self.cache == "defeated":
            raise ValueError("cache: defeated and a shared prefix contradict each other; write cache: cold or warm")
        return self


class Sessions(_Asked):
    """Conversations: each turn sends all turns before it, answers included."""

    kind: Literal["sessions"]
    turns: Length
    system: Length = Field(default=64, description="Tokens every session begins with, the same for all.")
    input: Length = Field(description="Tokens a turn adds.")
    output: Length
    think_s: Annotated[float, Field(ge=0, strict=False)] = Field(
        default=0.0, description="Seconds between answer and next turn."
    )
    cache: Literal["cold", "warm", "any"] = "cold"


class Trace(_Asked):
    """A recorded load. Text is not needed: blocks with equal hashes become equal tokens."""

    kind: Literal["trace"]
    path: str
    format: Literal["mooncake", "azure", "perilune"]
    time_scale: Positive = Field(default=1.0, description="0.5 replays twice as fast.")
    limit: Count | None = Field(default=None, description="Only the first so many requests.")
    max_input: Count | None = Field(default=None, description="Longer prompts are left out, and counted.")
    cache: Literal["cold", "warm", "any"] = "any"


Workload = Annotated[Random | Sessions | Trace, Field(discriminator="kind")]


def _workload_kind(value: Any) -> Any:
    if isinstance(value, str):
        return "name"
    return value.get("kind", "random") if isinstance(value, dict) else getattr(value, "kind", None)


NamedWorkload = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[Random, Tag("random")]
    | Annotated[Sessions, Tag("sessions")]
    | Annotated[Trace, Tag("trace")],
    Discriminator(_workload_kind),
]
"""A workload written out, or the name of one of the file's."""


class Closed(Strict):
    """`conc` requests are open at any time; the next starts when one ends."""

    kind: Literal["closed"]
    conc: Count = 1
    requests: Count | None = None
    waves: Count = Field(default=10, description="Requests per unit of concurrency, where `requests` is not given.")


class _Rated(Strict):
    rate: Positive = Field(default=1.0, description="Requests per second.")
    requests: Count = 100
    max_open: Count | None = Field(
        default=None, description="At most so many at once; waiting counts as response time."
    )


class Constant(_Rated):
    """One request every 1/rate seconds."""

    kind: Literal["constant"]


class Poisson(_Rated):
    """Independent arrivals: exponential gaps."""

    kind: Literal["poisson"]


class Gamma(_Rated):
    """Gaps of a gamma distribution; `burstiness` is its shape: below 1 bursts, 1 is Poisson, above 1 is smoother."""

    kind: Literal["gamma"]
    burstiness: Positive = 1.0


class Ramp(Strict):
    """The rate grows linearly from `start` to `stop` over `seconds`."""

    kind: Literal["ramp"]
    start: Annotated[float, Field(ge=0, strict=False)]
    stop: Positive
    seconds: Positive
    max_open: Count | None = None


class Replay(Strict):
    """When the trace says."""

    kind: Literal["replay"]
    max_open: Count | None = None


Load = Annotated[Closed | Constant | Poisson | Gamma | Ramp | Replay, Field(discriminator="kind")]
