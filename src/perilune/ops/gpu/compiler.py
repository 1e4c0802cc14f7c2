"""Compiling in a process beside this one, so that a compiler that hangs or aborts is an error that names the kernel.

What the process makes lies in Triton's cache on disk, where a launch, asking for the same thing, finds it. It is asked
in Triton's own words (`specialization_data`), a line of JSON each.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from triton import knobs
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import get_full_name, serialize_specialization_data

from perilune.errors import EngineDeadError
from perilune.ops.gpu.aot import CompileError, source
from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.launch import Launch

COMMAND = (sys.executable, "-m", "perilune.ops.gpu.compiling")
STARTING_SECONDS = 300
"""How long the process may take to import what it needs; then the patience with a kernel begins."""


class Compiler:
    """Compiles one kernel after another, each within `seconds`. Its process starts with the first that is not kept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self, launch: Launch, arch: Arch) -> None:
        """Compile what `launch` needs on `arch`. Raises as `make`, and CompileError where kernels are interpreted."""
        given, options = source(launch, arch)
        if not kept(given, arch.target, options):
            parts = (given.signature, given.constants, given.attrs)
            self.make(serialize_specialization_data(get_full_name(launch.kernel.fn), *parts, options, "", arch.target))

    def hear(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> None:
        """Triton's hook before it compiles, which then finds everything in the cache."""
        asked = compile["specialization_data"]
        options, target = (json.loads(asked)[name] for name in ("options", "target"))
        given = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        if not kept(given, GPUTarget(**target), make_backend(GPUTarget(**target)).parse_options(options)):
            self.make(asked)

    @classmethod
    def hearing(cls, seconds: float) -> Compiler:
        """One that hears of whatever this process is about to compile. One per process: Triton has one such hook."""
        compiler = cls(seconds)
        knobs.runtime.jit_cache_hook = compiler.hear
        return compiler

    def make(self, asked: str) -> None:
        """Have it compiled: `asked` as Triton serialises it.

        Raises EngineDeadError if that takes too long or the compiler dies, CompileError with what the compiler says.
        """
        described = json.loads(asked)
        what = f"{_short(described['name'])} for {_arch(described['target'])}"
        try:
            answer = self._answer(asked)
        except (TimeoutError, BrokenPipeError) as error:
            self.rest()
            raise EngineDeadError(
                f"The compiler was at {what}.",
                f"It {error}.",
                "If this machine only is slow, raise --compile-seconds; else please report it. --kernels reference or "
                "--device cpu does without it.",
            ) from error
        if failed := json.loads(answer)["error"]:
            raise CompileError(f"{what} does not compile: {failed}")

    def interrupt(self) -> None:
        """Let whoever waits for it wait no longer."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Hear no more, and end the process."""
        if knobs.runtime.jit_cache_hook == self.hear:
            knobs.runtime.jit_cache_hook = None
        self.rest()

    def rest(self) -> None:
        """End the process; another starts when it is needed."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answer(self, asked: str) -> bytes:
        if self._process is None:
            environment = {**os.environ, "TRITON_CACHE_DIR": str(knobs.cache.dir)}
            environment.pop("TRITON_INTERPRET", None)
            self._process = subprocess.Popen(  # noqa: S603 -- this very program
                [*COMMAND, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            _line(self._process, STARTING_SECONDS)
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(asked.encode() + b"\n")
        stdin.flush()
        return _line(self._process, self._seconds)


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next one. Raises TimeoutError, or BrokenPipeError if there will be none."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        if not ready.select(seconds):
            raise TimeoutError(f"did not answer for {seconds:.0f} s")
    if line := process.stdout.readline():
        return line
    status = process.wait()
    raise BrokenPipeError(f"ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}")


def compile_all(launches: Sequence[Launch], arch: Arch, compilers: Sequence[Compiler]) -> None:
    """Compile all `launches`, as many at a time as there are compilers. Raises what the first raised that failed."""
    idle: SimpleQueue[Compiler] = SimpleQueue()
    for compiler in compilers:
        idle.put(compiler)

    def one(launch: Launch) -> None:
        compiler = idle.get()
        try:
            compiler.launch(launch, arch)
        finally:
            idle.put(compiler)

    with ThreadPoolExecutor(len(compilers)) as pool:
        try:
            list(pool.map(one, launches))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for compiler in compilers:
                compiler.interrupt()
            raise
        finally:
            pool.shutdown()
            for compiler in compilers:
                compiler.close()


def kept(given: ASTSource, target: GPUTarget, options: Any) -> bool:
    """Whether Triton's cache has it, by the key that its compiler looks for."""
    key = get_cache_key(given, make_backend(target), options, env_vars=get_cache_invalidating_env_vars())
    found = get_cache_manager(hashlib.sha256(key.encode()).hexdigest()).get_group(f"{given.name[:150]}.json")
    return bool(found)


def _short(name: str) -> str:
    """kda.decode of perilune.ops.kda.kernels.decode."""
    *_, room, _, function = name.split(".")
    return f"{room}.{function}"


def _arch(target: dict[str, Any]) -> str:
    return f"sm_{target['arch']}" if target["backend"] == "cuda" else str(target["arch"])
