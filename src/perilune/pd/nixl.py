"""Over NIXL and UCX: one-sided reads through shared memory, RDMA or TCP, whatever UCX finds between the two processes.

What was measured and shapes this file: no progress thread, since it spins on a core, so the side that is read from must
`poll` too; one thread per agent, a second one crashes the process; a handle is released once, after its transfer has
ended; nothing can be cancelled but by destroying the agent; and an agent's name is never used twice.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import numpy as np

from perilune.pd.compiler import Bytes, Runs
from perilune.pd.errors import PlanError, TransportError
from perilune.pd.memory import Memory, resolve
from perilune.pd.transport import Operation, Peer, Transport

MODULES = ("nixl_cu12", "nixl_cu13", "nixl_rocm", "nixl", "rixl")
MODULE_VARIABLE = "PERILUNE_NIXL_MODULE"
_BUSY_SECONDS, _IDLE_SECONDS = 0.0005, 0.005


class Address(msgspec.Struct, frozen=True):
    metadata: bytes
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(eq=False)
class NixlPeer(Peer):
    agent: str = ""
    starts: Bytes = field(default_factory=lambda: np.empty(0, np.int64))
    sizes: Bytes = field(default_factory=lambda: np.empty(0, np.int64))


class NixlTransport(Transport):
    """Must be made by the thread that uses it."""

    name: ClassVar[str] = "nixl"
    batch_bytes: ClassVar[int] = 32 << 20
    window: ClassVar[int] = 2
    grace_seconds: ClassVar[float] = 0.5

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        module = load()
        # An agent's name is all that tells two agents apart, in this process and in others.
        name = f"perilune-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            config = module.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent: Any = module.nixl_agent(name, config)
            pools = zip(memory.starts, memory.sizes, strict=True)
            self._agent.register_memory([(start, size, 0, "") for start, size in pools if size], "DRAM")
            metadata = self._agent.get_agent_metadata()
        except Exception as error:  # the bindings raise their own kinds, which share no base
            raise TransportError("NIXL cannot be set up.", f"It says: {error}.", "Use tcp or local.") from error
        self._address = Address(metadata, tuple(memory.starts), tuple(memory.sizes))
        self._handles: dict[Operation, Any] = {}
        self._peers: list[NixlPeer] = []
        self._woken = threading.Event()

    @property
    def address(self) -> bytes:
        return msgspec.msgpack.encode(self._address)

    def connect(self, address: bytes) -> Peer:
        try:
            there = msgspec.msgpack.decode(address, type=Address)
            agent = self._agent.add_remote_agent(there.metadata)
        except Exception as error:
            raise TransportError("A NIXL address cannot be used.", str(error)) from error
        name = agent.decode() if isinstance(agent, bytes) else agent
        peer = NixlPeer([], name, np.array(there.starts, np.int64), np.array(there.sizes, np.int64))
        self._peers.append(peer)
        return peer

    def read(self, peer: Peer, runs: Runs) -> Operation:
        assert isinstance(peer, NixlPeer)
        target = self.memory.pointers(runs.target, runs.length)
        operation = Operation(peer, runs)
        if peer not in self._peers:
            operation.fail("the peer was given up")
            return operation
        peer.operations.append(operation)
        try:
            source = resolve(runs.source, runs.length, peer.starts, peer.sizes)
            handle = self._agent.initialize_xfer(
                "READ", self._descriptors(target, runs), self._descriptors(source, runs), peer.agent
            )
            self._handles[operation] = handle
            self._note(operation, self._agent.transfer(handle))
        except PlanError as error:
            operation.fail(error.what)
        except Exception as error:
            operation.fail(f"NIXL: {type(error).__name__} {error}")
        self._retire(operation)
        return operation

    def _descriptors(self, pointers: Bytes, runs: Runs) -> Any:
        columns = np.stack([pointers, runs.length, np.zeros_like(pointers)], axis=1)
        return self._agent.get_xfer_descs(columns.astype(np.uint64), "DRAM")

    def poll(self, timeout: float) -> None:
        for operation, handle in list(self._handles.items()):
            try:
                self._note(operation, self._agent.check_xfer_state(handle))
            except Exception as error:
                operation.fail(f"NIXL: {type(error).__name__} {error}")
            self._retire(operation)
        self._agent.get_new_notifs()  # there are none; asking is what lets peers read from here
        self._woken.wait(min(timeout, _BUSY_SECONDS if self._handles or self.attentive else _IDLE_SECONDS))
        self._woken.clear()

    def _note(self, operation: Operation, status: str) -> None:
        if status == "DONE":
            operation.state = "done"
        elif status != "PROC":
            operation.fail("NIXL reports an error")

    def _retire(self, operation: Operation) -> None:
        """Releases the handle of an operation that is over; before that, nobody may."""
        if operation.over:
            handle = self._handles.pop(operation, None)
            operation.peer.settle()
            if handle is not None:
                with contextlib.suppress(Exception):
                    self._agent.release_xfer_handle(handle)

    def wake(self) -> None:
        self._woken.set()

    def disconnect(self, peer: Peer) -> bool:
        assert isinstance(peer, NixlPeer)
        if peer.operations:
            return False
        if peer in self._peers:
            self._peers.remove(peer)
            with contextlib.suppress(Exception):
                self._agent.remove_remote_agent(peer.agent)
        return True

    def close(self) -> None:
        """Destroys the agent: the one thing after which no byte lands."""
        if self._agent is None:
            return
        handles = list(self._handles.values())
        for operation in self._handles:
            operation.fail("the transport was closed")
        self._handles.clear()
        for handle in handles:
            with contextlib.suppress(Exception):
                self._agent.release_xfer_handle(handle)
        for peer in self._peers:
            peer.settle()
            with contextlib.suppress(Exception):
                self._agent.remove_remote_agent(peer.agent)
        self._agent = None
        handles.clear()
        gc.collect()  # a handle in a cycle would keep the agent, and with it its transfers, alive


def load() -> Any:
    """The first NIXL module that is installed and works. Raises TransportError with every reason if there is none."""
    asked = os.environ.get(MODULE_VARIABLE)
    reasons = []
    for name in (asked,) if asked else MODULES:
        try:
            module = importlib.import_module(name)
            module.nixl_agent  # noqa: B018  # the meta package imports without any wheel behind it
        except Exception as error:  # a wheel for another accelerator fails in ways of its own
            reasons.append(f"{name}: {error}")
        else:
            if not os.environ.get("NIXL_LOG_LEVEL"):
                logging.getLogger("nixl").setLevel(logging.WARNING)  # it would announce every agent on stdout
            return module
    raise TransportError(
        "NIXL is not installed.",
        "; ".join(reasons) + ".",
        "Install perilune[pd-cu12] or perilune[pd-cu13], or use tcp.",
    )
