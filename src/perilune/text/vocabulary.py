"""What every tokenizer shares: ids to bytes, added tokens, stop ids. Subclasses only encode ordinary text."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perilune.errors import CheckpointError
from perilune.text.added import AddedTokens, named_token

STOP_TOKENS = ("[EOS]", "<|im_end|>", "[EOT]", "<|endoftext|>", "<|user|>", "<|observation|>")
"""Every text that ends a turn: Kimi's three, GLM's three. Checkpoint configs list only some of their own."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class ByteVocabulary(ABC):
    """A tokenizer whose ordinary tokens are byte strings (see the `Tokenizer` protocol for the contract)."""

    def __init__(self, base: Mapping[int, bytes], added: AddedTokens, config: Mapping[str, Any]) -> None:
        self._added = added
        self.vocab_size = max([-1, *base, *added.by_id]) + 1
        self._bytes = [b""] * self.vocab_size
        for token_id, piece in base.items():
            self._bytes[token_id] = piece
        for token_id, token in added.by_id.items():
            self._bytes[token_id] = token.text.encode()
        self._special = frozenset(token.id for token in added.by_id.values() if token.special)
        self.special_ids: Mapping[str, int] = MappingProxyType(added.ids)
        self.opening_ids: tuple[int, ...] = ()
        self.bos_id = added.ids.get(named_token(config, "bos_token") or "")
        names = {*STOP_TOKENS, named_token(config, "eos_token")}
        self.stop_ids = frozenset(token_id for text, token_id in added.ids.items() if text in names)

    @abstractmethod
    def _encode_ordinary(self, text: str) -> list[int]:
        """Ids of `text` with no added token among them."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids. Added-token text becomes its id only with `allow_special`; lone surrogates become U+FFFD."""
        text = encodable(text)
        if not allow_special:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for part in self._added.split(text):
            ids.extend([part] if isinstance(part, int) else self._encode_ordinary(part))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.join_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def join_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        return b"".join(self.token_bytes(i) for i in ids if not (skip_special and i in self._special))

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def vocabulary_bytes(self) -> list[bytes]:
        return list(self._grammar_bytes)

    @cached_property
    def _grammar_bytes(self) -> list[bytes]:
        return [b"" if i in self._added.by_id else piece for i, piece in enumerate(self._bytes)]


def encodable(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which JSON can carry and UTF-8 cannot."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError naming the file."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read.", f"{error}.", "Download the file again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is broken.", "It is not a JSON object.", "Download the file again.")
    return data
