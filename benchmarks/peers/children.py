"""A measuring process and how to ask it. Each engine has its own, so that peak memory and load time are its own too."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]


class MeasureError(Exception):
    """A measuring process failed. What it printed last is in the message."""


class Child:
    """`python -m MODULE` with benchmarks/ on its path; answers one command at a time."""

    def __init__(self, name: str, python: Path, module: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the child
        path = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(  # noqa: S603  # our own modules
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": path},
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command, wait for its answer. Raises MeasureError."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise MeasureError(f"{self.name} ended with status {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(f"{self.name} could not {do}: {answer['error']}. {self._last_words()}")
        return answer

    def close(self) -> None:
        """End the process; it has no state worth saving."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return f"It printed last: {self._log.read()[-2000:].strip()}"
