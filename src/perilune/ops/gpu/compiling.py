"""The process that compiles: `python -m perilune.ops.gpu.compiling PARENT`. A line of Triton's specialization data in,
a line with the error, or null, out. It needs no GPU and ends with its parent, even from the midst of a compilation."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from importlib import import_module
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend


def made(asked: dict[str, Any]) -> None:
    """Compile it into the cache, as `JITFunction.preload` would on the GPU itself. Raises what the compiler raises."""
    module, _, name = asked["name"].rpartition(".")
    target = GPUTarget(**asked["target"])
    constants = {tuple(key): value for key, value in zip(asked["constant_keys"], asked["constant_vals"], strict=True)}
    attributes = {tuple(key): value for key, value in zip(asked["attrs_keys"], asked["attrs_vals"], strict=True)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in asked["options"].items()}
    options = make_backend(target).parse_options(given)
    source = ASTSource(getattr(import_module(module), name), asked["signature"], constants, attributes)
    compile(source, target=target, options=options.__dict__)


def main(parent: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a compiler prints is no answer
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    print("{}", file=answers, flush=True)  # all is imported
    for line in sys.stdin:
        error = None
        try:
            made(json.loads(line))
        except Exception as raised:  # the compiler's own errors have no common type
            error = f"{type(raised).__name__}: {raised}"
        print(json.dumps({"error": error}), file=answers, flush=True)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    assert not triton.knobs.runtime.interpret
    main(int(sys.argv[1]))
