"""The same run from several processes, started at one instant, their logs merged."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import msgspec

from perilune.bench.load.client import Goal
from perilune.bench.load.clock import run
from perilune.bench.load.drive import Driven, drive, units
from perilune.bench.load.record import Ask
from perilune.errors import PeriluneError

_LEAD = 0.05
"""Seconds between the last process being ready and the start."""


class ClientError(PeriluneError):
    """A client process died: nothing it sent counts."""

    code = "client_died"


class _Job(msgspec.Struct):
    goal: Goal
    asks: list[Ask]
    places: int | None
    limit: int | None
    worker: int


def send(
    goal: Goal, asks: Sequence[Ask], *, places: int | None = None, limit: int | None = None, processes: int = 1
) -> Driven:
    """Sends a run and returns its log; see `drive`. Units of requests are dealt out in turn. Raises ClientError."""
    if processes == 1:
        gc.collect()
        return run(drive(goal, asks, time.monotonic() + _LEAD, places=places, limit=limit))
    parts = [[ask for unit in units(asks)[k::processes] for ask in unit] for k in range(processes)]
    jobs = [
        _Job(goal, part, _share(places, k, processes), _share(limit, k, processes), k)
        for k, part in enumerate(parts)
        if part and (places is None or _share(places, k, processes))
    ]
    return _merged([msgspec.msgpack.encode(job) for job in jobs])


def _share(total: int | None, k: int, of: int) -> int | None:
    """Of `total` places, those of process k; every process sends at least one."""
    return None if total is None else max(1, total // of + (k < total % of))


def _merged(jobs: list[bytes]) -> Driven:
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    children = []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(theirs, job), daemon=True)
            child.start()
            theirs.close()
            ends.append(ours)
            children.append(child)
        for end in ends:
            end.recv_bytes()
        origin = msgspec.msgpack.encode(time.monotonic() + _LEAD)
        for end in ends:
            end.send_bytes(origin)
        driven = [msgspec.msgpack.decode(end.recv_bytes(), type=Driven) for end in ends]
    except (EOFError, OSError) as error:
        raise ClientError(
            "A client process died.", f"{error!r}.", "Fewer processes or shorter runs need less memory."
        ) from error
    finally:
        for child in children:
            child.join(1)
            if child.is_alive():
                child.kill()
    records = sorted((r for d in driven for r in d.records), key=lambda record: record.end or 0.0)
    return Driven(records, [lag for d in driven for lag in d.lags], max(d.cpu for d in driven))


def _work(pipe: Connection, data: bytes) -> None:
    job = msgspec.msgpack.decode(data, type=_Job)
    gc.collect()
    pipe.send_bytes(b"ready")
    origin = msgspec.msgpack.decode(pipe.recv_bytes(), type=float)
    driven = run(drive(job.goal, job.asks, origin, places=job.places, limit=job.limit, worker=job.worker))
    pipe.send_bytes(msgspec.msgpack.encode(driven))
