"""Byte-level BPE from `tokenizer.json` through the `tokenizers` library (GLM, DeepSeek).

The library matches added tokens anywhere, in user text too. So the encoder here is built from a copy of the file
without any: added tokens are no part of its vocabulary and no merge leads to one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perilune.errors import CheckpointError, UnsupportedError
from perilune.text.added import AddedToken, AddedTokens, from_config, parse
from perilune.text.vocabulary import ByteVocabulary, read_json

if TYPE_CHECKING:
    import tokenizers


class HuggingFaceTokenizer(ByteVocabulary):
    """`encoder` knows ordinary tokens only; `base` is its vocabulary as bytes."""

    def __init__(
        self, encoder: tokenizers.Tokenizer, base: Mapping[int, bytes], added: AddedTokens, config: Mapping[str, Any]
    ) -> None:
        super().__init__(base, added, config)
        self._encoder = encoder

    @classmethod
    def load(cls, folder: Path) -> HuggingFaceTokenizer:
        """Reads `tokenizer.json` and, if there, `tokenizer_config.json`.

        Raises CheckpointError naming the broken file; UnsupportedError for anything but byte-level BPE.
        """
        path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        data = read_json(path)
        added = {token.id: token for token in from_config(config, str(config_path))}
        added |= {token.id: token for token in _added_tokens(data, path)}
        if not _is_byte_level(data):
            what = f"{path} is not a byte-level BPE tokenizer."
            raise UnsupportedError(what, "Only that kind is read.", "Pass token ids instead.")
        import tokenizers  # here: most models need one of two such libraries, each some MB of memory

        try:
            stripped = _without_added(data, added)
            encoder = tokenizers.Tokenizer.from_str(json.dumps(stripped))
            base = {token_id: _to_bytes(text) for text, token_id in stripped["model"]["vocab"].items()}
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is broken.", f"{error}.", "Download the file again.") from error
        tokenizer = cls(encoder, base, AddedTokens.of(added.values()), config)
        tokenizer.opening_ids = tuple(_opening(data.get("post_processor"), str(path)))
        return tokenizer

    def _encode_ordinary(self, text: str) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=False).ids)


def _added_tokens(data: Mapping[str, Any], path: Path) -> Iterator[AddedToken]:
    for entry in data.get("added_tokens") or ():
        yield parse(entry.get("id") if isinstance(entry, dict) else None, entry, str(path))


def _opening(processor: Any, path: str) -> Iterator[int]:
    """Ids that a `TemplateProcessing` step writes before the text."""
    if not isinstance(processor, dict):
        return
    for step in processor.get("processors") or ():
        yield from _opening(step, path)
    if processor.get("type") != "TemplateProcessing":
        return
    try:
        for part in processor["single"]:
            if "SpecialToken" not in part:
                return
            yield from (int(i) for i in processor["special_tokens"][part["SpecialToken"]["id"]]["ids"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is broken.", f"Its post_processor: {error!r}.", "Download it again.") from error


def _is_byte_level(data: Mapping[str, Any]) -> bool:
    """Both ends must be byte-level: the pre-tokenizer maps bytes to characters, the decoder maps them back."""
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        return False
    return all(_mentions_byte_level(data.get(part)) for part in ("pre_tokenizer", "decoder"))


def _mentions_byte_level(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    members = [*(part.get("pretokenizers") or ()), *(part.get("decoders") or ())]
    return part.get("type") == "ByteLevel" or any(_mentions_byte_level(member) for member in members)


def _without_added(data: Mapping[str, Any], added: Mapping[int, AddedToken]) -> dict[str, Any]:
    texts = {token.text for token in added.values()}
    model = dict(data["model"])
    model["vocab"] = {text: i for text, i in model["vocab"].items() if text not in texts and i not in added}
    model["merges"] = [merge for merge in model["merges"] if not texts & _involved(merge)]
    return {**data, "model": model, "added_tokens": [], "truncation": None, "padding": None, "post_processor": None}


def _involved(merge: Any) -> set[str]:
    """A merge is stored as "left right" or [left, right]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: visible Latin-1 bytes stand for themselves, the rest for U+0100 and up, in order."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _to_bytes(text: str) -> bytes:
    return bytes(_BYTE_OF[char] for char in text)
