"""Keeps user text from spelling an added token, whatever a template does with it.

Before rendering, in every user string each character that an added token could start with is replaced by an
alphanumeric placeholder with a random number in it. It survives trimming, JSON and changes of case. After
rendering, every added token in the text was written by the template; the placeholders then turn back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from perilune.text.vocabulary import encodable

_PLAIN_KEY = re.compile(r"[\w.$-]+")


class Markers:
    """The texts of all added tokens, prepared once per tokenizer."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = sorted(texts, key=len, reverse=True)
        self.longest = len(self.texts[0]) if self.texts else 0
        self.firsts = {text[0] for text in self.texts}
        self.pattern = re.compile("|".join(map(re.escape, self.texts)) if self.texts else r"(?!)")

    @cached_property
    def _tails(self) -> frozenset[str]:
        return frozenset(text[i:] for text in self.texts for i in range(1, len(text)))

    @cached_property
    def _insides(self) -> str:
        return "\0".join(text[1:] for text in self.texts)

    def could_continue(self, text: str) -> bool:
        """Whether `text` could complete a marker whose first character a template writes just before it."""
        if len(text) <= self.longest and text in self._insides:
            return True
        return any(text[:n] in self._tails for n in range(1, min(self.longest, len(text)) + 1))


class Guard:
    """One render's placeholders."""

    def __init__(self, markers: Markers) -> None:
        self._markers = markers
        self._nonce = f"q{secrets.randbelow(10**12):012d}"
        self._table = {ord(char): self._placeholder(char) for char in markers.firsts}
        self._hidden = re.compile(self._nonce + r"(\d{7})q", re.IGNORECASE)
        self._end = re.compile(self._nonce + r"endq( ?)", re.IGNORECASE)
        self.chars = 0
        """Characters of all strings hidden so far."""

    def hide(self, value: Any) -> Any:
        """A copy of a JSON value with every string, and every unusual key, made harmless."""
        if isinstance(value, str):
            text = encodable(value).translate(self._table)
            self.chars += len(text)
            return text
        if isinstance(value, dict):
            return {self.hide_key(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def hide_text(self, text: str) -> str:
        """As `hide`, for free text that a template never compares: its first character is hidden too if need be."""
        at = len(text) - len(text.lstrip())
        if at < len(text) and self._markers.could_continue(text.strip()):
            return str(self.hide(text[:at])) + self._placeholder(text[at]) + str(self.hide(text[at + 1 :]))
        return str(self.hide(text))

    def reveal(self, text: str) -> str:
        return self._hidden.sub(lambda match: chr(int(match.group(1))), text)

    def with_end(self, hidden: str) -> str:
        """A hidden text with a mark at its end, for `up_to_end`. The space tells later whether the template trims."""
        return f"{hidden}{self._nonce}endq "

    def up_to_end(self, text: str) -> str | None:
        """What a template rendered up to the mark, trimmed if the template trims; None if the mark is gone."""
        marks = list(self._end.finditer(text))
        if not marks:
            return None
        before = text[: marks[-1].start()]
        return before if marks[-1].group(1) else before.rstrip()

    def hide_key(self, key: Any) -> Any:
        # Templates look keys up by name, so a plain one stays as it is, unless it is a marker itself.
        if isinstance(key, str) and not (_PLAIN_KEY.fullmatch(key) and not self._markers.pattern.search(key)):
            return self.hide(key)
        return key

    def _placeholder(self, char: str) -> str:
        return f"{self._nonce}{ord(char):07d}q"
