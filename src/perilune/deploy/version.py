"""Versions of engines, as far as a recipe must compare them: the leading numbers."""

from __future__ import annotations

import re

from perilune.errors import ConfigError

Version = tuple[int, ...]


def version(text: str) -> Version:
    """`v0.27.1rc1` -> (0, 27, 1); llama.cpp's builds, `b8460` -> (8460,). Raises ConfigError for anything else."""
    match = re.match(r"[vb]?(\d+(?:\.\d+)*)", text)
    if match is None:
        raise ConfigError(f"{text!r} is no version.", "", "Write 0.27.1, or b8460 for llama.cpp.")
    return tuple(int(part) for part in match[1].split("."))


def within(found: Version, first: str | None, last: str | None) -> bool:
    """`first` <= found < `last`; None is no limit."""
    return (first is None or found >= version(first)) and (last is None or found < version(last))
