"""Facts of a host that rules ask for: given on the command line, or read from text that tools print."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable

from perilune.errors import ConfigError


def parse_facts(pairs: Iterable[str]) -> dict[str, str | int | None]:
    """`mec_fw=176` to a number; `mec_fw=` to a fact that is not known. Raises ConfigError without `=`."""
    found: dict[str, str | int | None] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"{pair!r} is no fact.", fix="Write --fact NAME=VALUE.")
        found[name] = int(value) if re.fullmatch(r"-?\d+", value) else value or None
    return found


def mec_firmware(text: str) -> int | None:
    """The version of the compute micro-engine's firmware in what `rocm-smi --showfw` prints.

    None for everything that is no plain number (`N/A`, `unknown`, `177b`, nothing): then it is not known, and a rule
    has to say what follows from that.
    """
    line = next((line for line in text.splitlines() if re.search(r"\bMEC\b", line)), "")
    last = line.split()[-1] if line.split() else ""
    return int(last, 10) if re.fullmatch(r"\d+", last) else None


def probe_facts() -> dict[str, str | int | None]:
    """What this host's own tools say. Never raises: a tool that is missing, fails or hangs tells nothing."""
    tool = shutil.which("rocm-smi")
    if tool is None:
        return {}
    try:
        printed = subprocess.run(  # noqa: S603 - the tool of PATH, without input
            [tool, "--showfw"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return {}
    found = mec_firmware(printed)
    return {} if found is None else {"mec_fw": found}
