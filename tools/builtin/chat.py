"""Conversations: what the makers produce, and how they become token ids with the answer positions marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from builtin.shape import SPECIALS

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Turn:
    """One question with its right answer. `name` says what it tests."""

    question: str
    answer: str
    name: str = ""


@dataclass(frozen=True)
class Row:
    """Token ids, and for each whether it is part of an answer (and thus counts in the loss)."""

    ids: list[int]
    answers: list[bool]


def prompt_ids(question: str, encode: Encode, system: str | None = None) -> list[int]:
    """One user turn and the opening of the answer, as the chat template renders it."""
    head = _message("<|im_system|>", "system", system, encode) if system else []
    return head + _message("<|im_user|>", "user", question, encode) + _opening(encode)


def conversation(turns: list[Turn], encode: Encode, system: str | None = None) -> Row:
    """All turns in order. The end-of-turn token of an answer counts as part of it."""
    ids = _message("<|im_system|>", "system", system, encode) if system else []
    answers = [False] * len(ids)
    for turn in turns:
        asked = _message("<|im_user|>", "user", turn.question, encode) + _opening(encode)
        answered = [*encode(turn.answer), SPECIALS["<|im_end|>"]]
        ids += asked + answered
        answers += [False] * len(asked) + [True] * len(answered)
    return Row(ids, answers)


def table(entries: list[tuple[str, str]], encode: Encode) -> Row:
    """An answer of many lines `left` + `right`, of which only the right sides count."""
    ids = prompt_ids("Calculate.", encode)
    answers = [False] * len(ids)
    for left, right in entries:
        asked, answered = encode(left), encode(right + "\n")
        ids += asked + answered
        answers += [False] * len(asked) + [True] * len(answered)
    return Row(ids, answers)


def _message(role: str, name: str, text: str, encode: Encode) -> list[int]:
    return [SPECIALS[role], *encode(name), SPECIALS["<|im_middle|>"], *encode(text), SPECIALS["<|im_end|>"]]


def _opening(encode: Encode) -> list[int]:
    return [SPECIALS["<|im_assistant|>"], *encode("assistant"), SPECIALS["<|im_middle|>"]]
