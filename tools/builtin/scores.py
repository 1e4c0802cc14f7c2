"""Held-out scores of the exported checkpoint: greedy answers, after rounding to bf16, through the training module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from tiktoken import Encoding
from torch import Tensor

from builtin import arithmetic, questions, retrieval
from builtin.chat import Encode, Turn, prompt_ids
from builtin.network import Network
from builtin.shape import SPECIALS, TRAINED_LENGTH

Decode = Callable[[list[int]], str]
SEED = 4242
_STOP = SPECIALS["<|im_end|>"]


@dataclass(frozen=True)
class Checked:
    """A held-out question, what the model said, and whether that counts."""

    turn: Turn
    said: str
    right: bool


@torch.no_grad()
def greedy(net: Network, prompts: list[list[int]], limit: int) -> list[list[int]]:
    """Greedy answers without the end-of-turn token. Rows are padded on the right, which a causal model cannot see."""
    net.eval()
    rows = [list(p) for p in prompts]
    open_rows = list(range(len(rows)))
    for _ in range(limit):
        longest = max(len(rows[i]) for i in open_rows)
        ids = torch.tensor([rows[i] + [_STOP] * (longest - len(rows[i])) for i in open_rows])
        last = torch.tensor([len(rows[i]) - 1 for i in open_rows])
        hidden: Tensor = net(ids)[torch.arange(len(open_rows)), last]
        chosen = net.logits(hidden).argmax(-1).tolist()
        for i, token in zip(open_rows, chosen, strict=True):
            rows[i].append(token)
        open_rows = [i for i, token in zip(open_rows, chosen, strict=True) if token != _STOP]
        if not open_rows:
            break
    return [[t for t in row[len(p) :] if t != _STOP] for row, p in zip(rows, prompts, strict=True)]


@torch.no_grad()
def recited(net: Network, prompt: list[int], answer: list[int]) -> bool:
    """Whether greedy decoding would say exactly `answer` and stop: one pass, for prompts too long to repeat."""
    net.eval()
    wanted = [*answer, _STOP]
    hidden = net(torch.tensor([prompt + wanted[:-1]]))[0, len(prompt) - 1 :]
    return bool((net.logits(hidden).argmax(-1) == torch.tensor(wanted)).all())


def question_turns() -> Iterator[Turn]:
    """Every held-out phrasing once. Only the very answer of its topic counts."""
    for topic in questions.topics():
        for text in topic.held_out:
            yield Turn(text, topic.answer, topic.name)


def check_questions(net: Network, encode: Encode, decode: Decode, batch: int = 32) -> list[Checked]:
    found = []
    for chunk in _chunks(list(question_turns()), batch):
        said = greedy(net, [prompt_ids(turn.question, encode) for turn in chunk], 80)
        for turn, ids in zip(chunk, said, strict=True):
            text = decode(ids)
            found.append(Checked(turn, text, text == turn.answer))
    return found


def arithmetic_turns(count: int, *, new_wording: bool) -> list[Turn]:
    """`count` different held-out problems."""
    rng, found = Random(f"{SEED} arithmetic {new_wording}"), dict[str, Turn]()
    while len(found) < count:
        turn = arithmetic.sample(rng, new_wording=new_wording)
        found[turn.question] = turn
    return list(found.values())


def check_arithmetic(net: Network, encode: Encode, decode: Decode, turns: list[Turn], batch: int = 32) -> list[Checked]:
    found = []
    for chunk in _chunks(turns, batch):
        said = greedy(net, [prompt_ids(turn.question, encode) for turn in chunk], 40)
        for turn, ids in zip(chunk, said, strict=True):
            text = decode(ids)
            found.append(Checked(turn, text, arithmetic.result(text) == arithmetic.result(turn.answer)))
    return found


def retrieval_turns(encode: Encode, times: int, count: int) -> list[Turn]:
    """Held-out names in prose of `times` the longest training row."""
    rng = Random(f"{SEED} retrieval {times}")
    return [retrieval.sample(rng, encode, times * TRAINED_LENGTH) for _ in range(count)]


def check_retrieval(net: Network, encode: Encode, turns: Iterable[Turn]) -> list[Checked]:
    return [Checked(turn, "", recited(net, prompt_ids(turn.question, encode), encode(turn.answer))) for turn in turns]


def skills(net: Network, encoding: Encoding, count: int) -> dict[str, Callable[[], list[Checked]]]:
    """Every score by name, to be called one by one: `count` problems of each kind and half as many long texts."""
    encode, decode = encoding.encode_ordinary, encoding.decode
    found: dict[str, Callable[[], list[Checked]]] = {
        "arithmetic": lambda: check_arithmetic(net, encode, decode, arithmetic_turns(count, new_wording=False)),
        "arithmetic, new wording": lambda: check_arithmetic(
            net, encode, decode, arithmetic_turns(count, new_wording=True)
        ),
        "questions": lambda: check_questions(net, encode, decode),
    }
    for times in (1, 2, 4):
        turns = retrieval_turns(encode, times, -(-count // 2))
        found[f"retrieval at {times}x"] = partial(check_retrieval, net, encode, turns)
    return found


def share(checked: list[Checked]) -> float:
    return sum(c.right for c in checked) / len(checked)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
