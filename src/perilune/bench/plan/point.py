"""One thing to measure: a server, a workload and a load, all values filled in, under one fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from perilune.bench.spec.recipe import Hardware
from perilune.bench.spec.sweep import Eval, Sweep, Target
from perilune.bench.spec.workload import Load, Workload


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Topology:
    """How a model is cut. Context parallelism for decoding (dcp) and experts (ep) share the GPUs of tp."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    pcp: int = 1
    dcp: int = 1
    ep: int = 1

    @property
    def gpus(self) -> int:
        """GPUs one server holds: tp · pp · dp · pcp."""
        return self.tp * self.pp * self.dp * self.pcp


@dataclass(frozen=True)
class Fired:
    """A rule that held for a point, and what it set."""

    when: str
    why: str
    argv: Mapping[str, Any]
    env: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One engine of a split server: `role` is prefill or decode."""

    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    gpus: int


@dataclass(frozen=True)
class Server:
    """What is started: `argv` without port, `env` as set over the parent's. Or `target`, which runs already. With
    `parts`, these engines are started first, and `argv` is the router before them."""

    engine: str
    model: str
    image: str | None
    argv: tuple[str, ...]
    env: Mapping[str, str]
    fired: tuple[Fired, ...]
    topology: Topology
    hardware: Hardware
    target: Target | None = None
    port_flag: str = "port"
    ready_s: float = 1800.0
    parts: tuple[Part, ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this another server."""
        return {
            "engine": self.engine,
            "model": self.model,
            "image": self.image,
            "argv": list(self.argv),
            "env": dict(self.env),
            "topology": vars(self.topology),
            "hardware": self.hardware.name,
            "target": None if self.target is None else {"url": self.target.url, "model": self.target.model},
        } | (
            {"parts": [{**vars(p), "argv": list(p.argv), "env": dict(p.env)} for p in self.parts]} if self.parts else {}
        )

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def gpus(self) -> int:
        """GPUs held, by all parts together; 0 on a machine without."""
        held = sum(part.gpus for part in self.parts) or self.topology.gpus
        return held if self.hardware.gpus else 0

    @property
    def devices(self) -> int:
        """What throughput is divided by: GPUs, or 1 on a machine without."""
        return self.gpus or 1

    def held(self, role: str) -> int:
        """GPUs of the engines of one role."""
        return sum(part.gpus for part in self.parts if part.role == role) if self.hardware.gpus else 0


@dataclass(frozen=True)
class Point:
    """`names` are the values of its axes; `sweep` what it came from, for repeats, limits and labels."""

    name: str
    names: Mapping[str, Any]
    server: Server
    workload: Workload
    load: Load
    sweep: Sweep

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"server": self.server.identity, **self.asked, "evals": [e.model_dump() for e in self.evals]}

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What the server is asked, and how: two results compare only if this is equal."""
        return {
            "workload": self.workload.model_dump(mode="json"),
            "load": self.load.model_dump(mode="json"),
            "warmup": self.sweep.warmup,
        }

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @cached_property
    def asked_fingerprint(self) -> str:
        return fingerprint(self.asked)

    @property
    def evals(self) -> tuple[Eval, ...]:
        return tuple(self.sweep.evals)

    @property
    def label(self) -> str:
        """`tp=4 conc=64`, for people."""
        return " ".join(f"{key}={value}" for key, value in self.names.items()) or "-"
