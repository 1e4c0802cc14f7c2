"""Kimi's tokenizer, read straight from `tiktoken.model` and tokenizer_config.json; none of the hub's code is run."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perilune.errors import CheckpointError
from perilune.text.added import AddedToken, AddedTokens, from_config
from perilune.text.vocabulary import ByteVocabulary, read_json

PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])  # fmt: skip
"""How Kimi cuts text before merging bytes: Han runs apart, then words at case changes, then digits by three."""

MAX_PIECE = 400_000
MAX_RUN = 25_000
"""Characters per call of tiktoken, and per run of (non-)whitespace. The hub's tokenizer cuts at the same places."""

_AGAIN = "Download the file again."
_RUN = re.compile(r"\s+|\S+")


class KimiTokenizer(ByteVocabulary):
    """Byte-pair encoding over `ranks` (bytes to id; a lower id merges first). Any vocabulary size."""

    def __init__(self, ranks: Mapping[bytes, int], added: AddedTokens, config: Mapping[str, Any]) -> None:
        super().__init__({rank: piece for piece, rank in ranks.items()}, added, config)
        import tiktoken  # here: see HuggingFaceTokenizer

        self._bpe = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens={})

    @classmethod
    def load(cls, folder: Path) -> KimiTokenizer:
        """Reads `tiktoken.model` and `tokenizer_config.json`. Raises CheckpointError naming the broken file."""
        ranks = read_ranks(folder / "tiktoken.model")
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path)
        named = from_config(config, str(config_path))
        first = max(ranks.values()) + 1
        for token in named:
            if token.id < first:
                raise CheckpointError(
                    f"{config_path} does not fit tiktoken.model.",
                    f"Added token {token.text!r} has id {token.id}, but ordinary tokens end at {first - 1}.",
                )
        return cls(ranks, AddedTokens.of([*_reserved(first, named), *named]), config)

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces(text):
            ids.extend(self._bpe.encode_ordinary(piece))
        return ids


def read_ranks(path: Path) -> dict[bytes, int]:
    """Lines of `base64 rank`. Raises CheckpointError unless ids are unique and every single byte has one."""
    ranks: dict[bytes, int] = {}
    line = b""
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{path} cannot be read.", f"{error}, at {line[:60]!r}.", _AGAIN) from error
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(f"{path} is broken.", f"{len(missing)} of 256 single bytes have no token.", _AGAIN)
    if len(set(ranks.values())) != len(ranks) or min(ranks.values()) < 0 or max(ranks.values()) >= 2**24:
        raise CheckpointError(f"{path} is broken.", "Its ids are not unique numbers from 0.", _AGAIN)
    return ranks


def pieces(text: str) -> Iterator[str]:
    """`text` cut so that no piece exceeds MAX_PIECE and no run of (non-)whitespace in it MAX_RUN characters."""
    for start in range(0, len(text), MAX_PIECE):
        piece = text[start : start + MAX_PIECE]
        done = 0
        for run in _RUN.finditer(piece) if len(piece) > MAX_RUN else ():
            for at in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                yield piece[done:at]
                done = at
        yield piece[done:]


def _reserved(first: int, named: list[AddedToken]) -> Iterator[AddedToken]:
    """Ids between named tokens belong to the model's control range too; the hub gives them these names."""
    for token_id in range(first, max((token.id for token in named), default=-1) + 1):
        yield AddedToken(token_id, f"<|reserved_token_{token_id}|>", special=True)
