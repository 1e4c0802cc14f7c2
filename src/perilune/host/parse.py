"""Numbers, versions and options out of text that may be empty, `N/A`, hexadecimal or worse: None, never a guess."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass


def integer(text: str) -> int | None:
    """`41`, ` -1 ` and `0x00000022`; None for all else: `N/A`, an empty text, `177b`, `1_000`."""
    text = text.strip()
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    return int(text, 16) if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text) else None


def version(text: str) -> tuple[int, ...] | None:
    """The numbers a version begins with: `7.2.0` -> (7, 2, 0), `6.4.1-83` -> (6, 4, 1), `v7` -> None."""
    match = re.match(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})*)", text)
    return None if match is None else tuple(int(part) for part in match[1].split("."))


def package_date(text: str) -> int | None:
    """The first run of exactly eight digits that is a date: `linux-firmware-20260309-1.fc43` -> 20260309."""
    for digits in re.findall(r"(?<!\d)\d{8}(?!\d)", text):
        if 2000 <= int(digits[:4]) <= 2999 and 1 <= int(digits[4:6]) <= 12 and 1 <= int(digits[6:]) <= 31:
            return int(digits)
    return None


@dataclass(frozen=True)
class Option:
    """`name` in the kernel's spelling (`-` is `_`), `value` unquoted, None if there was no `=`; `text` as written."""

    name: str
    value: str | None
    text: str


def kernel_options(text: str) -> tuple[Option, ...]:
    """The words of a kernel command line, in order, duplicates kept: the last of a name is in force."""
    try:
        words = shlex.split(text, posix=True)
    except ValueError:  # an open quote: the kernel takes it to the end, and so loses no more than that word
        words = text.split()
    options = []
    for word in words:
        name, equals, value = word.partition("=")
        options.append(Option(name.replace("-", "_"), value if equals else None, word))
    return tuple(options)


def module_options(text: str) -> tuple[Option, ...]:
    """`options ttm pages_limit=1` lines of modprobe.d, as `ttm.pages_limit`. Comments and other lines are skipped."""
    options = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) >= 3 and words[0] == "options":
            for word in words[2:]:
                name, equals, value = word.partition("=")
                full = f"{words[1]}.{name}".replace("-", "_")
                options.append(Option(full, value if equals else None, line.strip()))
    return tuple(options)
