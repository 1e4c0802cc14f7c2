"""Writes two small real tokenizers to disk, one per kind, in the hub's own file layout."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from perilune.text.tokenizer import Tokenizer, load_tokenizer

KIMI_ADDED = {
    "[BOS]": True, "[EOS]": True, "<|im_end|>": True, "<|im_user|>": True, "<|im_assistant|>": True,
    "[EOT]": True, "<|im_system|>": True, "<|im_middle|>": True, "[PAD]": True,
    "<|tool_calls_section_begin|>": False, "<|tool_calls_section_end|>": False, "<|tool_call_begin|>": False,
    "<|tool_call_argument_begin|>": False, "<|tool_call_end|>": False, "<think>": False, "</think>": False,
}  # fmt: skip
GLM_ADDED = {
    "<|endoftext|>": True, "[gMASK]": True, "<sop>": True, "<|system|>": True, "<|user|>": True, "<|assistant|>": True,
    "<|observation|>": True, "<think>": False, "</think>": False, "<tool_call>": False, "</tool_call>": False,
    "<arg_key>": False, "</arg_key>": False, "<arg_value>": False, "</arg_value>": False,
    "<tool_response>": False, "</tool_response>": False, "/nothink": False,
}  # fmt: skip
WORDS = (
    "hello world the user said im_end think tool_call I'm we're 中文字 日本 Hello World a中 oW über naïve 12345 "
    "functions get_weather city Paris \n \r\n \t 😀 🙂"
)


def write_kimi(folder: Path, words: str = WORDS) -> Path:
    """A tiktoken.model of 256 bytes and every prefix of some words; a gap of two ids inside the control range."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in [*words.split(" "), " hello", " the", "a中", "oW", "I'm", "  ", "   "]:
        for end in range(2, len(word.encode()) + 1):
            ranks.setdefault(word.encode()[:end], len(ranks))
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    ids = [len(ranks) + n + (2 if n > 4 else 0) for n in range(len(KIMI_ADDED))]
    decoder = {str(i): {"content": t, "special": s} for i, (t, s) in zip(ids, KIMI_ADDED.items(), strict=True)}
    config = {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "eos_token": {"content": "[EOS]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_glm(folder: Path) -> Path:
    """A trained byte-level BPE whose added tokens sit inside the model's vocabulary too, as converted files do."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = Regex(r"(?i:'s|'m)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=list(GLM_ADDED), show_progress=False
    )
    tokenizer.train_from_iterator([WORDS + " /nothink"] * 3, trainer)
    data = json.loads(tokenizer.to_str())
    for entry in data["added_tokens"]:
        entry["special"] = GLM_ADDED[entry["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


def loaded(folder: Path) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer
