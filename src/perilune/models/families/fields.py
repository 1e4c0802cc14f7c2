"""A config.json read key by key: every wrong value is an error that names its key. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from perilune.errors import CheckpointError, UnsupportedError

_MISSING: Any = object()


class Fields:
    """A view on one JSON object of a config.

    Each getter takes one or more names for the same value (hub repositories and transformers 5 disagree) and uses the
    first that is present. Raises CheckpointError for a missing key, a wrong type, or a value out of range.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config, self.where = config, where

    def has(self, *names: str) -> bool:
        """Whether one of `names` is present and not null."""
        return any(self.config.get(name) is not None for name in names)

    def section(self, name: str) -> Fields:
        """The nested object `name`."""
        value = self.config.get(name)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return Fields(value, f"{self.where} {name}")

    def integer(self, *names: str, default: int = _MISSING, minimum: int = 1, maximum: int = 2**40) -> int:
        name, value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self._wrong(name, value, f"a whole number from {minimum} to {maximum}")
        return value

    def optional_integer(self, *names: str, minimum: int = 0) -> int | None:
        return self.integer(*names, minimum=minimum) if self.has(*names) else None

    def number(self, *names: str, default: float = _MISSING, above: float = 0.0) -> float:
        name, value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
            raise self._wrong(name, value, f"a number above {above:g}")
        return float(value)

    def flag(self, *names: str, default: bool = _MISSING) -> bool:
        name, value = self._find(names, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, *names: str, default: str = _MISSING) -> str:
        name, value = self._find(names, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers."""
        value = self._find((name,), _MISSING)[1]
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise self._wrong(name, value, "a list of whole numbers")
        return value

    def choices(self, name: str, length: int, valid: Iterable[str]) -> list[str]:
        """A list of `length` words, each one of `valid`."""
        value = self._find((name,), _MISSING)[1]
        allowed = sorted(valid)
        if not isinstance(value, list) or len(value) != length or any(v not in allowed for v in value):
            raise self._wrong(name, value, f"a list of {length} words out of {', '.join(allowed)}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids given as one number, a list, or not at all."""
        value = self.config.get(name)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in listed):
            raise self._wrong(name, value, "a token id or a list of them")
        return tuple(listed)

    def only(self, name: str, *allowed: object) -> None:
        """Refuse, with UnsupportedError, a value of `name` that is present and not one of `allowed`."""
        value = self.config.get(name)
        if value is not None and not any(value == option and type(value) is type(option) for option in allowed):
            wanted = " or ".join(repr(option) for option in allowed)
            raise UnsupportedError(
                f"{self.where}: {name} = {_short(value)} is not supported.",
                f"This build computes {name} = {wanted} only." if allowed else "This build has no such layer.",
                "Choose another checkpoint.",
            )

    def absent(self, *names: str) -> None:
        """Refuse, with UnsupportedError, any of `names` that is switched on: set, not null, not false, not zero."""
        for name in names:
            if self.config.get(name) not in (None, False, 0):
                self.only(name)

    def equal(self, name: str, expected: int, because: str) -> None:
        """CheckpointError unless `name` is absent, null or `expected`."""
        value = self.config.get(name)
        if value is not None and value != expected:
            raise CheckpointError(
                f"{self.where}: {name} is {_short(value)}, not {expected}.", because, f"Correct {name} in the config."
            )

    def _find(self, names: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for name in names:
            if self.config.get(name) is not None:
                return name, self.config[name]
        if default is not _MISSING:
            return names[0], default
        raise CheckpointError(
            f"{self.where} has no {names[0]!r}.",
            "The model cannot be built without it.",
            "Copy the key from the model's original config.json.",
        )

    def _wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: {name} = {_short(value)} is not {wanted}.", "", f"Correct {name} in the config."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
