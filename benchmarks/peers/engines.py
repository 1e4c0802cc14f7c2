"""The engines that take part: where each one's Python is, which file it loads, and in how many ways."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peers.children import BENCHMARKS, Child
from peers.environment import ensure_environment
from perilune.host.cores import WAITING
from perilune.units import format_bytes

SOURCES = BENCHMARKS.parent / "src"


@dataclass(frozen=True)
class Setup:
    """`key` names the engine in tables, `name` for people. `settings` go with every load.

    `fast` are the settings for speed, `light` those to choose from where load time and memory are measured.
    """

    key: str
    name: str
    python: Path
    module: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    fast: Mapping[str, Any] = field(default_factory=dict)
    light: tuple[Mapping[str, Any], ...] = ({},)

    def load(self, **settings: Any) -> tuple[Child, float]:
        """A new process with the model loaded, and the seconds the load took."""
        child = Child(self.name, self.python, self.module, self.environment)
        try:
            return child, child.ask("load", **self.settings, **settings)["seconds"]
        except BaseException:
            child.close()
            raise


def perilune(folder: Path, threads: int, chunk: int, profile: bool) -> Setup:
    """This repository's perilune, with the threads' waiting set as the server sets it for its engine process."""
    settings = {"model": str(folder), "threads": threads, "chunk": chunk, "profile": profile}
    environment = {**WAITING, "OMP_NUM_THREADS": str(threads)}
    return Setup("perilune", "perilune", Path(sys.executable), "peers.perilune_child", settings, environment)


def llama_cpp(folder: Path, threads: int, chunk: int, flash: str, environment: Path) -> Setup:
    """llama.cpp on the GGUF file beside `folder`; file and environment are made if they are missing.

    A mapped file is its default; read instead, the model needs half the memory, since it keeps repacked copies. Flash
    attention, also its default, is faster in decoding and slower in prefill (docs/benchmarks.md).
    """
    python = ensure_environment(environment)
    file = ensure_gguf(folder, python)
    settings = {"model": str(file), "threads": threads, "chunk": chunk}
    fast = {"mapped": True, "flash": flash}
    light = ({"mapped": True, "flash": "on"}, {"mapped": False, "flash": "on"})
    return Setup("llama_cpp", "llama.cpp", python, "peers.llama_child", settings, fast=fast, light=light)


def ensure_gguf(folder: Path, python: Path) -> Path:
    """The slice of `folder` as a GGUF file beside it, not older than the slice."""
    file = folder.with_name(f"{folder.name}.gguf")
    if not file.is_file() or file.stat().st_mtime < (folder / "slice.json").stat().st_mtime:
        path = os.pathsep.join((str(BENCHMARKS), str(SOURCES)))
        command = [str(python), "-m", "peers.gguf_file", str(folder), str(file)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})  # noqa: S603  # our own module
    return file


def transformers(folder: Path, threads: int, needed: int, available: int) -> Setup | str:
    """transformers in this Python; a string says why it does not take part. `needed` and `available` are bytes."""
    if find_spec("transformers") is None:
        return "transformers is not installed"
    if needed > available:
        return f"it needs {format_bytes(needed)}, of which {format_bytes(available)} are available; fewer --layers fit"
    settings, environment = {"model": str(folder), "threads": threads}, {"OMP_NUM_THREADS": str(threads)}
    name = "transformers"
    return Setup(name, name, Path(sys.executable), "peers.transformers_child", settings, environment)
