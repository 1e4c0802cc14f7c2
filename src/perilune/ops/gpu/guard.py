"""Which kernels are ready, and which were asked for that were not: after an engine's warm-up that must be none.

On a GPU Triton itself says what it makes ready, compiled or taken from its cache on disk; both take time. Interpreted,
nothing is compiled, so the launches are counted by what Triton would compile for them.
"""

from __future__ import annotations

import logging
from typing import Any

import triton

from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.keys import key
from perilune.ops.gpu.launch import Gpu, Launch

log = logging.getLogger(__name__)


class Guard:
    """Counts from when it is opened. One per process: Triton has one hook for all that it compiles."""

    def __init__(self) -> None:
        self.late: list[str] = []
        """Names of kernels that were first asked for after `settle`."""
        self._seen: set[Any] = set()
        self._settled = False
        self._before: Any = None

    @classmethod
    def on(cls, gpu: Gpu) -> Guard:
        """A guard of what `gpu` launches from now on."""
        guard = cls()
        if triton.knobs.runtime.interpret:
            gpu.listeners.append(guard)
        else:
            guard._before = triton.knobs.runtime.jit_post_compile_hook
            triton.knobs.runtime.jit_post_compile_hook = guard._made
        return guard

    @property
    def ready(self) -> int:
        """Kernels, each for one choice of types, alignments and constants."""
        return len(self._seen)

    def named(self) -> dict[str, int]:
        """Its numbers under the names that `/metrics` shows."""
        return {"kernels_ready": self.ready, "kernels_late_total": len(self.late)}

    def settle(self) -> None:
        """The warm-up is over."""
        self._settled = True

    def close(self) -> None:
        """Triton's hook is whose it was before."""
        if not triton.knobs.runtime.interpret:
            triton.knobs.runtime.jit_post_compile_hook = self._before

    def starts(self, launch: Launch, arch: Arch) -> None:
        self._note(key(launch, arch), launch.name)

    def launched(self, launch: Launch) -> None: ...

    def _made(self, **made: Any) -> None:
        self._note(made["key"], made["repr"])
        if self._before is not None:
            self._before(**made)

    def _note(self, what: Any, name: str) -> None:
        if what in self._seen:
            return
        self._seen.add(what)
        if self._settled:
            self.late.append(name)
            log.warning("A request waited for a kernel that the warm-up had forgotten: %s. Please report it.", name)
