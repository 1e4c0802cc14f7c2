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


class Recipe(Strict):
    """`{tp}` in a value stands for the point's tp; true is a bare flag, false and null are left out."""

    engine: Literal["perilune", "vllm", "sglang", "atom", "other"] = "perilune"
    model: str
    image: str | None = None
    command: list[str] | None = Field(
        default=None, description="The program and its first arguments, in place of the engine's own."
    )
    port_flag: str = Field(default="port", description="The flag that takes the port.")
    argv: Flags = Field(default_factory=dict)
    env: Environment = Field(default_factory=dict)
    rules: list[Rule] = Field(default_factory=list)
    ready_s: Annotated[float, Field(gt=0, strict=False)] = Field(
        default=1800.0, description="Longest time until /v1/models answers."
    )

    @model_validator(mode="after")
    def _startable(self) -> Recipe:
        if self.engine == "other" and not self.command:
            raise ValueError("engine: other needs a command")
        return self


class Hardware(Strict):
    """What the numbers are per. `facts` are what rules may ask for; null is a fact nobody could read."""

    name: str = "local"
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs in the machine; 0 for a CPU.")
    facts: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
