"""This machine as a source of readings. Opens files for reading, and runs the few commands of a fixed list."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from importlib import metadata
from pathlib import Path

from perilune.host.sysroot import ABSENT, Listing, Reading, list_folder, problem_of, read_file

# Each is tried in order until one ends well. An empty tuple is output only a user can give: `--with NAME=FILE`.
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dmesg": (("dmesg",), ("journalctl", "-k", "-b", "-q", "-o", "cat", "--no-pager")),
    "dpkg-firmware": (
        ("dpkg-query", "-W", "-f=${Package} ${Version}\\n", "linux-firmware"),  # Ubuntu's
        ("dpkg-query", "-W", "-f=${Package} ${Version}\\n", "firmware-amd-graphics"),  # Debian's
    ),
    "dpkg-kernel": (("dpkg-query", "-W", "-f=${Package} ${Version}\\n", "linux-image-{release}"),),
    "rpm-firmware": (("rpm", "-q", "linux-firmware", "amd-gpu-firmware"), ("rpm", "-q", "linux-firmware")),
    "pacman-firmware": (("pacman", "-Q", "linux-firmware-amdgpu"), ("pacman", "-Q", "linux-firmware")),
    "rocm-smi-showfw": (("rocm-smi", "--showfw"),),
    "amd-smi-firmware": (("amd-smi", "firmware", "--json"),),
    "rocminfo": (("rocminfo",),),
    "docker-inspect": (),
    "hip-total": (),
}
SECONDS = 0.6  # all commands together: the doctor is to answer within a second, with or without them


class Live:
    """The running host and this process's environment."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds

    def read(self, kind: str, name: str) -> Reading:
        if kind == "command":
            text, problem = self._command(name)
        else:
            text, problem = {"file": _file, "device": _device, "variable": _variable, "package": _package}[kind](name)
        return Reading(kind, name, text, problem)

    def names(self, path: str) -> Listing:
        return list_folder(path, Path(path))

    def _command(self, name: str) -> tuple[str | None, str]:
        problem = ABSENT
        for argv in COMMANDS[name]:
            words = [word.replace("{release}", os.uname().release) for word in argv]
            program = shutil.which(words[0])
            if program is None:
                continue
            if self._seconds <= 0:
                return None, "the time for commands was spent"
            started = time.monotonic()
            try:
                done = subprocess.run(  # noqa: S603 - fixed words, no shell, nothing from a user
                    [program, *words[1:]],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=self._seconds,
                    check=False,
                    env={**os.environ, "LC_ALL": "C"},
                )
            except subprocess.TimeoutExpired:
                problem = "took too long"
            except OSError as error:
                problem = problem_of(error)
            else:
                if done.returncode == 0:
                    return done.stdout.decode(errors="replace"), ""
                problem = f"ended with status {done.returncode}"
            finally:
                self._seconds -= time.monotonic() - started
        return None, problem


def _file(name: str) -> tuple[str | None, str]:
    return read_file(Path(name))


def _device(name: str) -> tuple[str | None, str]:
    """`crw-rw---- gid 992 rw`: mode, owning group by number, what this user may do."""
    try:
        found = os.stat(name)
    except OSError as error:
        return None, problem_of(error)
    may = "".join(word for word, bit in (("r", os.R_OK), ("w", os.W_OK)) if os.access(name, bit)) or "none"
    return f"{stat.filemode(found.st_mode)} gid {found.st_gid} {may}", ""


def _variable(name: str) -> tuple[str | None, str]:
    value = os.environ.get(name)
    return value, "" if value is not None else ABSENT


def _package(name: str) -> tuple[str | None, str]:
    try:
        return metadata.version(name), ""
    except metadata.PackageNotFoundError:
        return None, ABSENT
