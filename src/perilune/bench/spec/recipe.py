"""How a server is started, as data: flags, environment, and rules over the point that say why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perilune.files.strict import Strict

Value = str | int | float | bool
Flags = dict[str, Value | list[Value] | None]
Environment = dict[str, Value | None]


class Rule(Strict):
    """Where `when` holds, `argv` and `env` are set over the recipe's. null takes a flag or variable away."""

    when: str
    argv: Flags = Field(default_factory=dict)
    env: Environment = Field(default_factory=dict)
    why: Annotated[str, Field(min_length=1)]


class Part(Strict):
    """Engines of one role: `count` of them, each with the recipe's flags and these on top."""

    count: Annotated[int, Field(ge=1)] = 1
    tp: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Theirs, in place of the point's.")
    argv: Flags = Field(default_factory=dict)
    env: Environment = Field(default_factory=dict)


class Split(Strict):
    """perilune's prefill and decode engines on this host, and the router before them, with flags of its own."""

    prefill: Part = Part()
    decode: Part = Part()
    router: Flags = Field(default_factory=dict)


class Recipe(Strict):
    """`{tp}` in a value stands for the point's tp; true is a bare flag, false and null are left out."""

    deploy: str | None = Field(
        default=None,
        description="A recipe of `perilune recipe ls`: its image, command and flags; `argv` and `env` go on top.",
    )
    context: Value | None = Field(default=None, description="deploy: tokens per sequence, as `{context}`.")
    concurrency: Value | None = Field(default=None, description="deploy: sequences at once, as `{conc}`.")
    options: list[str] = Field(default_factory=list, description="deploy: the recipe's own, such as aiter-off.")
    engine: Literal["perilune", "vllm", "sglang", "atom", "other"] = "perilune"
    model: str | None = Field(default=None, description="Needed without `deploy`; with it, another checkpoint.")
    image: str | None = None
    command: list[str] | None = Field(
        default=None, description="The program and its first arguments, in place of the engine's own."
    )
    port_flag: str = Field(default="port", description="The flag that takes the port.")
    argv: Flags = Field(default_factory=dict)
    env: Environment = Field(default_factory=dict)
    rules: list[Rule] = Field(default_factory=list)
    split: Split | None = Field(
        default=None, description="perilune only: prefill and decode on engines of their own behind a router."
    )
    ready_s: Annotated[float, Field(gt=0, strict=False)] = Field(
        default=1800.0, description="Longest time until /v1/models answers."
    )

    @model_validator(mode="after")
    def _startable(self) -> Recipe:
        if self.engine == "other" and not self.command:
            raise ValueError("engine: other needs a command")
        if self.deploy is None and self.model is None:
            raise ValueError("'model' is missing")
        if self.split is not None and (self.engine != "perilune" or self.command or self.deploy):
            raise ValueError("split starts perilune's own engines and router: no other engine, command or deploy")
        own = {"engine", "command", "port_flag", "image"} & self.model_fields_set
        if self.deploy is not None and own:
            raise ValueError(f"with deploy, {', '.join(sorted(own))} is the recipe's to say")
        return self


class Hardware(Strict):
    """What the numbers are per. `facts` are what rules may ask for; null is a fact nobody could read."""

    name: str = "local"
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs in the machine; 0 for a CPU.")
    facts: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
