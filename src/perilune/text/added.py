"""Added tokens: the ids a vocabulary holds beside its ordinary, mergeable tokens.

All of them are kept away from ordinary encoding; `special` only decides what decoding shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from perilune.errors import CheckpointError


@dataclass(frozen=True)
class AddedToken:
    """`special` tokens (end of turn, padding) vanish from decoded text; others (tool markers, <think>) stay."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True)
class AddedTokens:
    """All added tokens of one vocabulary, by id and by text."""

    by_id: Mapping[int, AddedToken]

    @classmethod
    def of(cls, tokens: Iterable[AddedToken]) -> AddedTokens:
        return cls({token.id: token for token in tokens})

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token.text: token.id for token in self.by_id.values()}

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches any added token, the longest where several start at one place."""
        texts = sorted(self.ids, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")

    def split(self, text: str) -> Iterator[str | int]:
        """Ordinary text as `str` (never empty) and added tokens as their ids, in order."""
        start = 0
        for match in self.pattern.finditer(text):
            if match.start() > start:
                yield text[start : match.start()]
            yield self.ids[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:]


def from_config(config: Mapping[str, Any], source: str) -> list[AddedToken]:
    """The tokens of tokenizer_config.json's `added_tokens_decoder` ({"163586": {"content", "special"}}).

    Raises CheckpointError naming `source` when an entry is malformed.
    """
    table = config.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"{source} is broken.", "added_tokens_decoder is not an object.")
    return [parse(key, entry, source) for key, entry in table.items()]


def parse(id_text: Any, entry: Any, source: str) -> AddedToken:
    """One entry with `content` and `special`; `id_text` is a decimal string or an int."""
    try:
        token = AddedToken(int(id_text), entry["content"], bool(entry.get("special", False)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{source} is broken.", f"Bad added token {id_text!r}: {entry!r}.") from error
    if not isinstance(token.text, str) or not token.text or token.id < 0:
        raise CheckpointError(f"{source} is broken.", f"Bad added token {id_text!r}: {entry!r}.")
    return token


def named_token(config: Mapping[str, Any], key: str) -> str | None:
    """The text of `bos_token`, `eos_token`, ... which is stored as a string or as {"content": string}."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
