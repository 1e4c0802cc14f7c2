"""What a fleet file says: the model, how many engines of which role, what each needs, and hosts for without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from perilune.errors import ConfigError, nearest
from perilune.files.checked import checked
from perilune.files.strict import Strict
from perilune.files.yamlfile import YamlFile, parse_yaml, read_yaml

Role = Literal["prefill", "decode", "workers"]
ROLES: tuple[Role, ...] = get_args(Role)

Count = Annotated[int, Field(ge=0, le=10_000)]
Port = Annotated[int, Field(ge=1, le=65535)]
Scalar = str | int | float | bool
Flags = dict[str, Scalar | list[str | int | float]]
"""`max-context: 4096`; true is a flag without a value, false none; a list repeats the flag."""


class HostPart(Strict):
    """A machine without Ray: where it is reached, and what it has."""

    address: str
    cpus: Annotated[float, Field(ge=0, strict=False)] = 1.0
    gpus: Count = 0


class Group(Strict):
    """Engines of one role. `cpus` and `gpus` are what one of them takes; `hosts` where they may run, else anywhere."""

    count: Count = 1
    cpus: Annotated[float, Field(ge=0, strict=False)] = 1.0
    gpus: Count = 0
    hosts: Annotated[list[str], Field(min_length=1)] | None = None
    serve: Flags = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)


class RouterPart(Strict):
    """The router, on the machine where `perilune fleet up` runs. `flags` as `perilune route` has them."""

    host: str = "127.0.0.1"
    port: Port = 8080
    flags: Flags = Field(default_factory=dict)


class FleetFile(Strict):
    """The whole file. Ports count up from `first_port` and `first_pd_port` on every host."""

    version: Literal[1] = 1
    model: str
    key_file: str | None = Field(default=None, description="The cluster's key, at the same path on every host.")
    program: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["perilune"])
    logs: str = "~/.local/state/perilune/fleet"
    first_port: Port = 8101
    first_pd_port: Port = 18101
    gpu_variable: str = Field(default="CUDA_VISIBLE_DEVICES", description="For printed commands; Ray sets its own.")
    serve: Flags = Field(default_factory=dict, description="Flags of every engine.")
    env: dict[str, str] = Field(default_factory=dict)
    prefill: Group | None = None
    decode: Group | None = None
    workers: Group | None = None
    router: RouterPart = RouterPart()
    hosts: dict[str, HostPart] = Field(default_factory=dict)

    @property
    def groups(self) -> Mapping[Role, Group]:
        found: dict[Role, Group | None] = {"prefill": self.prefill, "decode": self.decode, "workers": self.workers}
        return {role: group for role, group in found.items() if group is not None}

    @model_validator(mode="after")
    def _works(self) -> FleetFile:
        if not self.groups:
            raise ValueError(f"a fleet needs engines: {', '.join(ROLES)}")
        if self.prefill is not None and self.decode is None and self.workers is None:
            raise ValueError("prefill engines need decode engines or workers to hand over to")
        if self.prefill is not None and self.key_file is None:
            raise ValueError("engines hand over only with a cluster key: set key_file")
        return self


def load_fleet(path: Path) -> FleetFile:
    """Raises ConfigError naming file, line, key and the nearest valid name."""
    return check(read_yaml(path))


def parse_fleet(text: str, path: str = "<text>") -> FleetFile:
    """The same for text in memory."""
    return check(parse_yaml(text, path))


def check(source: YamlFile) -> FleetFile:
    file = checked(FleetFile, source)
    for role, group in file.groups.items():
        for number, name in enumerate(group.hosts or ()):
            if file.hosts and name not in file.hosts:
                place = source.place((role, "hosts", number))
                raise ConfigError(f"{place}: {role}.hosts: there is no host {name!r}.", fix=nearest(name, file.hosts))
    return file
