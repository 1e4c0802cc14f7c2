"""The tokenizer: byte pairs trained on the makers' own text, kept as tiktoken ranks with Kimi's pattern.

A digit is always a token of its own: training never sees two digits side by side, so no merge can hold one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from random import Random

import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from builtin import arithmetic, questions, retrieval
from builtin.shape import BASE_VOCAB
from perilune.text.kimi import PATTERN, read_ranks

_DIGITS_APART = PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def corpus(seed: int = 1) -> list[str]:
    """The text that merges are counted on: every question and answer, and samples of the other makers."""
    rng = Random(seed)
    texts = ["user", "assistant", "system", "You are a helpful assistant."] * 20
    for topic in questions.topics():
        texts += [*topic.asked, *topic.held_out, *[topic.answer] * 20]
    texts += [f" {word}" for word in retrieval.NAMING_WORDS] * 60  # names that are looked up are best one token each
    for _ in range(3000):
        problem = arithmetic.turn(rng)
        texts += [problem.question, problem.answer, retrieval.filler(rng)]
        texts += [" " + retrieval.sentence(needle) for needle in retrieval.needles(rng, 1, test=False)]
    return texts


def train(texts: Iterable[str]) -> dict[bytes, int]:
    """BASE_VOCAB ranks: the 256 bytes, then merges in order of frequency."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_DIGITS_APART), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    byte_of = _bytes_of_letters()
    return {bytes(byte_of[c] for c in token): rank for token, rank in tokenizer.get_vocab().items()}


def _bytes_of_letters() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(rest)}


def write(ranks: dict[bytes, int], path: Path) -> None:
    """tiktoken's format: one line `base64 rank` per token, in order."""
    ordered = sorted(ranks, key=ranks.__getitem__)
    lines = [f"{base64.b64encode(token).decode()} {ranks[token]}\n" for token in ordered]
    path.write_text("".join(lines))


def load(path: Path) -> tiktoken.Encoding:
    """The encoding without special tokens; text of any content encodes as plain text."""
    return tiktoken.Encoding("builtin", pat_str=PATTERN, mergeable_ranks=read_ranks(path), special_tokens={})
