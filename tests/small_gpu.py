"""A GPU on which work is shared among few programs, since in Triton's interpreter they run one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

from perilune.ops.gpu.arch import ARCHES


def use_small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: the interpreter prepares the language anew each time a kernel calls a helper, which takes longer than to
    run it; once per helper and launch is enough."""
    monkeypatch.setitem(ARCHES, "gfx1151", dataclasses.replace(ARCHES["gfx1151"], units=2))
    prepared: set[Any] = set()
    run = InterpretedFunction.run

    def launch(function: InterpretedFunction[Any], *args: Any, **kwargs: Any) -> Any:
        prepared.clear()
        return run(function, *args, **kwargs)

    def call(function: InterpretedFunction[Any], *args: Any, **kwargs: Any) -> Any:
        if function.fn not in prepared:
            prepared.add(function.fn)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", launch)
    monkeypatch.setattr(InterpretedFunction, "__call__", call)
