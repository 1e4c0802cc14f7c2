"""Which backend serves which op, decided once at start-up, with the reason why others were refused.

A backend says `supports(op) -> None | reason`. The reference is always there and always last.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

OPS = {
    "kda": "Kimi Delta Attention: chunked prefill, recurrent decode",
    "mla": "multi-head latent attention over pages",
    "moe": "router and experts",
    "linear": "dense, int4, MXFP4 and FP8-block matrix products",
    "norm": "RMSNorm",
    "sample": "penalties, truncation, draw",
}
BACKENDS = ("triton", "cpu", "reference")  # fastest first


@dataclass(frozen=True)
class Choice:
    """`backend` serves `op`; `refused` holds (backend, reason) for each faster one that does not."""

    op: str
    what: str
    backend: str
    refused: tuple[tuple[str, str], ...]


def supports(backend: str, op: str) -> str | None:
    """None if `backend` can serve `op` here, else the reason."""
    if backend == "reference":
        return None
    if importlib.util.find_spec(f"perilune.ops.{op}.{backend}") is None:
        return "no Triton kernels in this build" if backend == "triton" else "no C++ kernels in this build"
    return None


def choose(op: str) -> Choice:
    """The first backend that supports `op`."""
    refused: list[tuple[str, str]] = []
    for backend in BACKENDS:
        reason = supports(backend, op)
        if reason is None:
            return Choice(op, OPS[op], backend, tuple(refused))
        refused.append((backend, reason))
    raise AssertionError("the reference serves everything")


def table() -> list[Choice]:
    """One choice per op, in a fixed order."""
    return [choose(op) for op in OPS]
