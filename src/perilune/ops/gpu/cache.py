"""Where compiled kernels stay, so that an engine's second start compiles none."""

from __future__ import annotations

import os
from pathlib import Path

from triton import knobs


def compile_cache() -> Path:
    """The folder Triton keeps binaries in, from now on: $TRITON_CACHE_DIR if it is set, else `perilune/triton` in the
    user's cache folder, readable by nobody else, since what lies there is run."""
    if "TRITON_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "perilune" / "triton"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        knobs.cache.dir = str(folder)
    return Path(knobs.cache.dir)
