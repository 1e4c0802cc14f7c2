"""The peer's own virtual environment: llama.cpp compiled for this processor, and the library that writes its files."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy>=2")
# Native: every instruction set this processor has. Left out: pictures and downloads.
CMAKE_ARGS = "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF"


def default_folder() -> Path:
    """Where the environment and the slices are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "perilune" / "peers"


def ensure_environment(folder: Path) -> Path:
    """The python of the environment in `folder`, made first if it is not there: about 15 minutes on two cores.

    Raises CalledProcessError if a package cannot be installed; pip has then said why.
    """
    python, marker = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join((*PACKAGES, CMAKE_ARGS))
    if not marker.is_file() or marker.read_text() != wanted:
        print(f"Installing {', '.join(PACKAGES)} in {folder}; llama.cpp is compiled.", file=sys.stderr)
        if not python.is_file():
            venv.create(folder, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(command, check=True, env={**os.environ, "CMAKE_ARGS": CMAKE_ARGS})  # noqa: S603  # our own list
        marker.write_text(wanted)
    return python
