"""Between processes of one user on one host: the kernel copies from their memory into ours, no third copy, no daemon.

process_vm_readv(2) needs no co-operation of the other process, not even that it runs. It copies before it returns, so
nothing is ever under way when nobody looks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from perilune.pd.compiler import Bytes, Runs
from perilune.pd.errors import PlanError, TransportError
from perilune.pd.memory import Memory, resolve
from perilune.pd.transport import Operation, Peer, Transport

IOV_MAX = 1024
_REFUSED = (
    "The kernel does not let this process read that one's memory.",
    "Both must run as the same user, in one container; kernel.yama.ptrace_scope must be 0, or CAP_SYS_PTRACE held.",
)


class Address(msgspec.Struct, frozen=True):
    """`host` tells one boot of one kernel from all others."""

    host: str
    pid: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(eq=False)
class LocalPeer(Peer):
    pid: int = 0
    starts: Bytes = field(default_factory=lambda: np.empty(0, np.int64))
    sizes: Bytes = field(default_factory=lambda: np.empty(0, np.int64))


class LocalTransport(Transport):
    """`poll` copies one batch at a time."""

    name: ClassVar[str] = "local"
    batch_bytes: ClassVar[int] = 16 << 20
    window: ClassVar[int] = 1

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self._readv = _bind()
        self._host = host()
        self._queue: deque[Operation] = deque()
        self._woken = threading.Event()

    @property
    def address(self) -> bytes:
        memory = self.memory
        return msgspec.msgpack.encode(Address(self._host, os.getpid(), tuple(memory.starts), tuple(memory.sizes)))

    def connect(self, address: bytes) -> Peer:
        try:
            there = msgspec.msgpack.decode(address, type=Address)
        except msgspec.MsgspecError as error:
            raise TransportError("A local address cannot be read.", str(error)) from error
        if there.host != self._host:
            raise TransportError("The peer runs on another host.", "Its kernel is not this one.", "Use tcp or nixl.")
        return LocalPeer([], there.pid, np.array(there.starts, np.int64), np.array(there.sizes, np.int64))

    def read(self, peer: Peer, runs: Runs) -> Operation:
        self.memory.pointers(runs.target, runs.length)
        operation = Operation(peer, runs)
        peer.operations.append(operation)
        self._queue.append(operation)
        return operation

    def poll(self, timeout: float) -> None:
        if not self._queue:
            self._woken.wait(timeout)
        self._woken.clear()
        if self._queue:
            operation = self._queue.popleft()
            if not operation.over:
                self._copy(operation)
            operation.peer.settle()

    def _copy(self, operation: Operation) -> None:
        peer, runs = operation.peer, operation.runs
        assert isinstance(peer, LocalPeer)
        try:
            source = resolve(runs.source, runs.length, peer.starts, peer.sizes)
        except PlanError as error:
            return operation.fail(error.what)
        target = self.memory.pointers(runs.target, runs.length)
        into, out = np.stack([target, runs.length], axis=1), np.stack([source, runs.length], axis=1)
        for n in range(0, len(runs), IOV_MAX):
            count, wanted = len(into[n : n + IOV_MAX]), int(runs.length[n : n + IOV_MAX].sum())
            copied = self._readv(peer.pid, into[n:].ctypes.data, count, out[n:].ctypes.data, count, 0)
            if copied != wanted:
                return operation.fail(_why(ctypes.get_errno()) if copied < 0 else "the peer's memory is gone in part")
        operation.state = "done"

    def wake(self) -> None:
        self._woken.set()

    def disconnect(self, peer: Peer) -> bool:
        for operation in peer.operations:
            operation.fail("given up")
        peer.settle()
        return True

    def close(self) -> None:
        for operation in self._queue:
            operation.fail("the transport was closed")
        self._queue.clear()


def host() -> str:
    """This boot of this kernel. Raises TransportError where there is no Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        raise TransportError("This host has no boot id.", "Only Linux can copy between processes.") from error


def _bind() -> Any:
    readv = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if readv is None:
        raise TransportError("The C library has no process_vm_readv.", "Only Linux can copy between processes.")
    pointer, count = ctypes.c_void_p, ctypes.c_ulong
    readv.argtypes, readv.restype = (ctypes.c_int, pointer, count, pointer, count, count), ctypes.c_ssize_t
    return readv


def _why(code: int) -> str:
    if code == errno.ESRCH:
        return "the peer's process is gone"
    return " ".join(_REFUSED) if code in (errno.EPERM, errno.ENOSYS) else f"the kernel says: {os.strerror(code)}"
