"""Bytes and seconds with names, so that a bare number never needs guessing."""

from __future__ import annotations

import re

from perilune.errors import ConfigError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_BYTES = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3, "t": 1000**4, "tb": 1000**4,
    "ki": KIB, "kib": KIB, "mi": MIB, "mib": MIB, "gi": GIB, "gib": GIB, "ti": 1024**4, "tib": 1024**4,
}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Bytes from `4096`, `"24GiB"`, `"1.5 GB"`. Decimal and binary suffixes keep their meaning.

    Raises ConfigError for anything else.
    """
    if isinstance(text, int):
        value: float = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
        unit = _BYTES.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise ConfigError(
                f"{text!r} is not a size.", "A number with a unit is expected.", "Write 24GiB, 24GB or bytes."
            )
        value = float(match.group(1)) * unit
    if value < 0:
        raise ConfigError(f"A size cannot be negative: {text!r}.")
    return int(value)


def format_bytes(count: int | float) -> str:
    """`1536` -> `1.5 KiB`. Binary units, since that is what memory is sold and allocated in."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def format_seconds(seconds: float) -> str:
    """`0.0042` -> `4.2 ms`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
