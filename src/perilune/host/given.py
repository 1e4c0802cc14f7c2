"""Outputs of commands that the user ran, given as NAME=FILE: what needs root, another container, or time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from perilune.errors import ConfigError, nearest
from perilune.host.live import COMMANDS
from perilune.host.sysroot import read_file


def read_given(words: Iterable[str]) -> dict[str, str]:
    """Text per command's name. Raises ConfigError for an unknown name and for a file that cannot be read."""
    given = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or name not in COMMANDS:
            raise ConfigError(f"--with {word!r} is not NAME=FILE of a known command.", "", nearest(name, COMMANDS))
        text, problem = read_file(Path(file))
        if text is None:
            raise ConfigError(f"--with {word!r}: {file} cannot be read.", problem)
        given[name] = text
    return given
