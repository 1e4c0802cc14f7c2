"""One process of a fleet on this machine, as `deploy/child.py` runs them, without waiting until it answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from perilune.deploy.child import Program, begin, end
from perilune.deploy.failures import Ended, classify, tail

STOP_SECONDS = 30.0
_WHY = 300


class Process:
    """Raises ConfigError if the program is not there. `perilune` is this installation's."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        words = (sys.executable, "-m", "perilune", *argv[1:]) if argv[0] == "perilune" else tuple(argv)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("wb") as output:
            self._child = begin(Program("perilune", words, environment, "/health", None), output.fileno())

    def ended(self) -> str | None:
        """Why it runs no more, in one line; None while it runs."""
        status = self._child.poll()
        if status is None:
            return None
        return " ".join(str(classify(Ended(status, tail(self._log, 0), self._log))).split())[:_WHY]

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Asks it to end, so that it finishes what is open; kills its whole group after `seconds`."""
        end(self._child, seconds)
