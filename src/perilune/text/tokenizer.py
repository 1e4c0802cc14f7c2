"""The tokenizer contract, and finding the right reader for a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from perilune.text.huggingface import HuggingFaceTokenizer
from perilune.text.kimi import KimiTokenizer


class Tokenizer(Protocol):
    """Text to ids and back. Ids outside the vocabulary decode to nothing: a model's head may be padded wider."""

    vocab_size: int
    """Largest id + 1, added tokens included. The model's own vocabulary may be larger."""
    special_ids: Mapping[str, int]
    """Every added token, whether its `special` flag is set or not."""
    stop_ids: frozenset[int]
    """Every id that ends a turn."""
    bos_id: int | None
    opening_ids: tuple[int, ...]
    """What the checkpoint puts before a raw prompt (GLM: [gMASK]<sop>). A chat template writes its own."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids. Unless `allow_special`, the text of an added token is encoded as ordinary text."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text. `skip_special` drops tokens flagged special; tool markers and <think> are not flagged and stay."""

    def join_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """What `decode` decodes; may end inside a character."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_text(self, token_id: int) -> str:
        """One token as text, U+FFFD where it is no whole character."""

    def is_special(self, token_id: int) -> bool: ...

    def vocabulary_bytes(self) -> list[bytes]:
        """Bytes per id for a grammar matcher. Added tokens are empty: a grammar must never spell text with them."""


def load_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in the folder `path`, or None if it has no tokenizer files.

    Raises CheckpointError naming the broken file, UnsupportedError for a kind that is not read.
    """
    if (path / "tiktoken.model").exists():
        return KimiTokenizer.load(path)
    if (path / "tokenizer.json").exists():
        return HuggingFaceTokenizer.load(path)
    return None
