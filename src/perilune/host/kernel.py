"""The release of a kernel, and which of them have the two fixes that ROCm needs on gfx1151."""

from __future__ import annotations

import re
from dataclasses import dataclass

VISIBLE = (6, 16, 9)  # before it, HIP sees half of what the operating system has, or the carve-out
FIXED = (6, 18, 4)  # has 7f26af7bf9b7 (queue creation) and 7445db6a7d5a (memory availability)


@dataclass(frozen=True)
class Kernel:
    """`6.17.0-19-generic` is release (6, 17, 0), abi 19, flavour "generic". A missing patch level is 0."""

    text: str
    release: tuple[int, int, int]
    candidate: bool
    abi: int | None
    flavour: str

    @classmethod
    def parse(cls, text: str) -> Kernel | None:
        """None if the text does not begin with `MAJOR.MINOR`."""
        text = text.strip()
        match = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(.*)", text, re.DOTALL)
        if match is None:
            return None
        major, minor, patch, rest = match.groups()
        ubuntu = re.fullmatch(r"-(\d{1,6})-(generic|oem|lowlatency|aws|azure|gcp)\S*", rest)
        return cls(
            text,
            (int(major), int(minor), int(patch or 0)),
            re.match(r"-?rc\d", rest) is not None,
            int(ubuntu[1]) if ubuntu else None,
            ubuntu[2] if ubuntu else "",
        )

    @property
    def backport(self) -> str | None:
        """The Ubuntu series known to carry both fixes that this kernel is at or beyond: "OEM", "HWE", or None."""
        if self.abi is None:
            return None
        if self.flavour == "oem" and self.release == (6, 14, 0) and self.abi >= 1018:
            return "OEM"
        if self.flavour == "generic" and self.release == (6, 17, 0) and self.abi >= 19:
            return "HWE"
        return None


def upload_is_fixed(version: str) -> bool | None:
    """Whether Ubuntu's upload of ABI 6.17.0-19 is 19.19~24.04.2 or later; None if that cannot be told.

    The ABI string that `uname -r` prints lacks the last part. A `~24.04.N` sorts before the same without it.
    """
    match = re.search(r"6\.17\.0-(\d+)\.(\d+)(?:~24\.04\.(\d+))?", version)
    if match is None:
        return None
    abi, upload, series = int(match[1]), int(match[2]), match[3]
    return (abi, upload, 99 if series is None else int(series)) >= (19, 19, 2)
