"""The thread that owns one transport of one rank: plans each fetch, keeps reads under way, reports when they are over.

A report is a promise: after Fetched or Failed no byte of that job lands. Where a transport cannot end its reads by
waiting or by giving the peer up, the mover closes it, which is the last fence, and begins a new epoch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from perilune.errors import PeriluneError
from perilune.pd.commands import (
    Attend,
    Cancel,
    Command,
    Failed,
    FailureKind,
    Fetch,
    Fetched,
    Forget,
    Meet,
    Rendezvous,
    Report,
    Serving,
    Stop,
)
from perilune.pd.compiler import Runs, compile_pull, tail
from perilune.pd.errors import PlanError
from perilune.pd.memory import Memory, beacon_runs
from perilune.pd.regions import RegionTable
from perilune.pd.transport import Factory, Operation, Peer, Transport

log = logging.getLogger(__name__)
IDLE_SECONDS = 1.0
DRAIN_POLL_SECONDS = 0.01
DRAIN_SECONDS = 5.0
PROOF_SECONDS = 5.0
Failure = tuple[str, FailureKind]


@dataclass
class _Way:
    """To one rank of another engine. `proof` reads its beacon; `proven` once that is what was promised."""

    peer: Peer
    proof: Operation
    proven: bool = False


@dataclass
class _Job:
    fetch: Fetch
    engine: Rendezvous
    started: float
    ways: dict[int, _Way] = field(default_factory=dict)  # this and the next two by source rank
    waiting: dict[int, deque[Runs]] = field(default_factory=dict)
    moving: dict[int, list[Operation]] = field(default_factory=dict)
    nbytes: int = 0
    runs: int = 0
    failure: Failure | None = None
    drain_until: float = 0.0
    quiet_from: float | None = None

    @property
    def under_way(self) -> list[Operation]:
        return [operation for operations in self.moving.values() for operation in operations]


class Mover:
    """One rank's transport in a thread of its own. `send` may be called from anywhere; `report` is called from the
    thread and must not block."""

    def __init__(
        self,
        name: str,
        table: RegionTable,
        memory: Memory,
        factory: Factory,
        report: Callable[[Report], None],
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self.name, self._table, self._memory, self._factory = name, table, memory, factory
        self._report, self._drain_seconds = report, drain_seconds
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._transport: Transport | None = None
        self._epoch = 0
        self._engines: dict[str, Rendezvous] = {}
        self._ways: dict[tuple[str, int], _Way] = {}
        self._jobs: dict[str, _Job] = {}
        self._attentive = False
        self._thread = threading.Thread(target=self._run, name=f"pd-{name}-{table.rank}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, command: Command) -> None:
        self._commands.put(command)
        transport = self._transport
        if transport is not None:
            transport.wake()

    def join(self, timeout: float) -> bool:
        """Whether the thread has ended, its transport closed."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._open()
        while self._obey():
            try:
                moved = self._advance()
                if self._transport is not None:
                    self._transport.poll(0.0 if moved else DRAIN_POLL_SECONDS if self._jobs else IDLE_SECONDS)
            except Exception as error:
                log.exception("transport %s failed", self.name)
                self._reset(f"{type(error).__name__}: {error}")
        if self._transport is not None:
            self._transport.close()

    def _open(self) -> None:
        try:
            self._transport = self._factory(self._memory)
        except PeriluneError as error:
            self._transport = None
            self._report(Serving(self._table.rank, self.name, reason=str(error), epoch=self._epoch))
        else:
            self._transport.attentive = self._attentive
            self._report(Serving(self._table.rank, self.name, self._transport.address, epoch=self._epoch))

    def _obey(self) -> bool:
        """Take all commands that are there; False on Stop. Without a transport, wait for the next one."""
        while True:
            try:
                command = self._commands.get(block=self._transport is None)
            except queue.Empty:
                return True
            if isinstance(command, Stop):
                return False
            if isinstance(command, Meet):
                self._engines[command.engine.incarnation] = command.engine
            elif isinstance(command, Forget):
                self._forget(command.incarnation)
            elif isinstance(command, Fetch):
                self._begin(command)
            elif isinstance(command, Cancel) and command.job in self._jobs:
                self._fail(self._jobs[command.job], "cancelled", "final")
            elif isinstance(command, Attend):
                self._attentive = command.on
                if self._transport is not None:
                    self._transport.attentive = command.on

    def _forget(self, incarnation: str) -> None:
        self._engines.pop(incarnation, None)
        for key in [key for key in self._ways if key[0] == incarnation]:
            way = self._ways.pop(key)
            if self._transport is not None:
                self._transport.disconnect(way.peer)

    def _begin(self, fetch: Fetch) -> None:
        engine = self._engines.get(fetch.incarnation)
        if self._transport is None or engine is None:
            reason = f"{self.name} does not work here" if engine else "nobody has met that engine"
            self._report(Failed(self._table.rank, fetch.job, reason, "unreachable" if engine else "final"))
            return
        job = self._jobs[fetch.job] = _Job(fetch, engine, time.monotonic())
        try:
            if fetch.end > fetch.first or fetch.target.slot is not None:
                plan = compile_pull(self._table, fetch.target, engine.tables, fetch.source, (fetch.first, fetch.end))
            else:
                plan = [Runs.none()] * len(engine.tables)
            if fetch.zero_tail:
                self._memory.zero(*tail(self._table, fetch.target, fetch.end))
            for rank, runs in enumerate(plan):
                if len(runs) or fetch.end == fetch.first:
                    job.ways[rank] = self._reach(engine, rank)
                    job.waiting[rank] = deque(runs.batches(self._transport.batch_bytes))
                    job.moving[rank] = []
                    job.nbytes, job.runs = job.nbytes + runs.nbytes, job.runs + len(runs)
        except PlanError as error:
            self._fail(job, str(error), "final")
        except PeriluneError as error:
            self._fail(job, str(error), "unreachable")

    def _reach(self, engine: Rendezvous, rank: int) -> _Way:
        """A way to that rank, being proven if it is new."""
        key = (engine.incarnation, rank)
        way = self._ways.get(key)
        if way is not None and way.proof.state != "failed":
            return way
        assert self._transport is not None
        if way is not None:
            self._transport.disconnect(way.peer)
        peer = self._transport.connect(engine.addresses[self.name][rank])
        self._memory.clear_landing(rank)
        way = self._ways[key] = _Way(peer, self._transport.read(peer, beacon_runs(rank)))
        return way

    def _advance(self) -> bool:
        """Whether something was started or ended: then there may be more to do at once."""
        moved = False
        for name, job in list(self._jobs.items()):
            if self._jobs.get(name) is not job:
                continue  # a reset, for another job's sake, has ended it
            if job.failure is None:
                moved |= self._push(job)
            if job.failure is not None:
                moved |= self._drain(job)
        return moved

    def _push(self, job: _Job) -> bool:
        """Keep the window of every source rank full; report when all is there."""
        started = False
        for rank, waiting in job.waiting.items():
            moving, way = job.moving[rank], job.ways[rank]
            if not self._proven(job, rank, way):
                continue
            failed = next((operation for operation in moving if operation.state == "failed"), None)
            if failed is not None:
                self._fail(job, failed.error, "transient")
                return True
            moving[:] = [operation for operation in moving if not operation.over]
            assert self._transport is not None
            while waiting and len(moving) < self._transport.window:
                moving.append(self._transport.read(way.peer, waiting.popleft()))
                started = True
        done = all(way.proven for way in job.ways.values()) and not any(job.waiting.values())
        if job.failure is not None or not done or any(operation.state != "done" for operation in job.under_way):
            return started
        del self._jobs[job.fetch.job]
        seconds = time.monotonic() - job.started
        self._report(Fetched(self._table.rank, job.fetch.job, job.nbytes, job.runs, seconds))
        return True

    def _proven(self, job: _Job, rank: int, way: _Way) -> bool:
        if not way.proven and way.proof.state == "done":
            way.proven = self._memory.landed(rank) == job.engine.beacons[rank]
            if not way.proven:
                way.proof.state = "failed"
                self._fail(job, f"{self.name} leads to another process", "unreachable")
        elif way.proof.state == "failed":
            self._fail(job, way.proof.error, "unreachable")
        elif not way.proven and time.monotonic() > job.started + PROOF_SECONDS:
            self._fail(job, f"no answer over {self.name}", "unreachable")
        return way.proven

    def _fail(self, job: _Job, reason: str, kind: FailureKind) -> None:
        """No further read is started; those under way are drained."""
        if job.failure is None:
            job.failure = (reason, kind)
            job.drain_until = time.monotonic() + self._drain_seconds
            for waiting in job.waiting.values():
                waiting.clear()

    def _drain(self, job: _Job) -> bool:
        now = time.monotonic()
        under_way = [operation for operation in job.under_way if not operation.over]
        if under_way and now >= job.drain_until:
            assert self._transport is not None
            ended = [self._transport.disconnect(peer) for peer in {operation.peer for operation in under_way}]
            if not all(ended):
                self._reset("reads that cannot be ended otherwise")
                return True
            under_way = []
        if under_way:
            return False
        if job.quiet_from is None:
            broken = any(operation.state == "failed" for operation in job.under_way)
            grace = self._transport.grace_seconds if self._transport is not None and broken else 0.0
            job.quiet_from = now + grace
        if now < job.quiet_from:
            return False
        assert job.failure is not None
        self._retire_ways(job)
        del self._jobs[job.fetch.job]
        self._report(Failed(self._table.rank, job.fetch.job, *job.failure))
        return True

    def _retire_ways(self, job: _Job) -> None:
        """After a failure that was the way's, the next job looks for a new one."""
        if job.failure is None or job.failure[1] == "final":
            return
        for rank, way in job.ways.items():
            if self._ways.get((job.fetch.incarnation, rank)) is way:
                del self._ways[(job.fetch.incarnation, rank)]
            if self._transport is not None:
                self._transport.disconnect(way.peer)

    def _reset(self, reason: str) -> None:
        """Close the transport, after which nothing lands, and start again under a new address."""
        log.warning("transport %s of rank %d begins a new epoch: %s", self.name, self._table.rank, reason)
        if self._transport is not None:
            self._transport.close()
        jobs, self._jobs = list(self._jobs.values()), {}
        self._ways.clear()
        self._epoch += 1
        for job in jobs:
            failure: Failure = job.failure or (f"the transport was reset: {reason}", "transient")
            self._report(Failed(self._table.rank, job.fetch.job, *failure))
        self._open()
