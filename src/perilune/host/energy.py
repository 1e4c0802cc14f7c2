"""Energy and power as far as this host lets anyone read them: RAPL's counters, and what AMD GPUs say they draw.

Read-only; imports no torch. Where nothing can be read, nothing is said: absent is not zero. RAPL is readable for root
only on many systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Power:
    """One reading: `joules` of each counter and where it wraps, `watts` of each sensor, by path."""

    joules: Mapping[str, tuple[float, float]]
    watts: Mapping[str, float]


def read_power(root: Path = Path("/")) -> Power:
    """Package counters (cores and memory are parts of a package, or not counted by it), and each GPU's average draw."""
    joules = {}
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        name, used, wrap = (
            _text(folder / "name"),
            _number(folder / "energy_uj"),
            _number(folder / "max_energy_range_uj"),
        )
        if name.startswith("package") and used is not None:
            joules[str(folder)] = (used / 1e6, (wrap or 0) / 1e6)
    watts = {}
    for sensor in sorted((root / "sys/class/drm").glob("card*/device/hwmon/hwmon*")):
        for name in ("power1_average", "power1_input"):
            drawn = _number(sensor / name)
            if drawn is not None:
                watts[str(sensor)] = drawn / 1e6
                break
    return Power(joules, watts)


def spent(before: Power, after: Power) -> float | None:
    """Joules the counters moved by in between, one turn over at most; None without counters."""
    found = [
        end - begin if end >= begin else end - begin + wrap
        for path, (begin, wrap) in before.joules.items()
        if path in after.joules
        for end in [after.joules[path][0]]
    ]
    return sum(found) if found else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
