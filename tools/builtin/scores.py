"""Held-out scores of the exported checkpoint: greedy answers, after rounding to bf16, through the training module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    for _ in range(limit if rows else 0):
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
def recited(net: Network, prompts: list[list[int]], answers: list[list[int]]) -> list[bool]:
    """For each prompt, whether greedy decoding would say exactly that answer and stop. One pass, no decoding."""
    net.eval()
    rows = [p + a + [_STOP] for p, a in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    hidden = net(torch.tensor([row + [_STOP] * (longest - len(row)) for row in rows]))
    found = []
    for row, p, h in zip(rows, prompts, hidden, strict=True):
        said = net.logits(h[len(p) - 1 : len(row) - 1]).argmax(-1)
        found.append(said.tolist() == row[len(p) :])
    return found


def answer_all(net: Network, encoding: Encoding, turns: list[Turn], limit: int, batch: int = 32) -> list[str]:
    """What greedy decoding says to each question. Only where it is not the expected answer does it have to decode."""
    said: list[str] = []
    encode = encoding.encode_ordinary
    for chunk in _chunks(turns, batch):
        prompts = [prompt_ids(turn.question, encode) for turn in chunk]
        right = recited(net, prompts, [encode(turn.answer) for turn in chunk])
        other = iter(greedy(net, [p for p, ok in zip(prompts, right, strict=True) if not ok], limit))
        said += [turn.answer if ok else encoding.decode(next(other)) for turn, ok in zip(chunk, right, strict=True)]
    return said


def question_turns(*, by_hand: bool) -> list[Turn]:
    """Every held-out phrasing once: those written by hand, or those of the generic forms."""
    return [
        Turn(text, topic.answer, topic.name)
        for topic in questions.topics()
        for text in (topic.by_hand if by_hand else topic.generic)
    ]


def arithmetic_turns(count: int, *, new_wording: bool) -> list[Turn]:
    """`count` different held-out problems."""
    rng, found = Random(f"{SEED} arithmetic {new_wording}"), dict[str, Turn]()
    while len(found) < count:
        turn = arithmetic.sample(rng, new_wording=new_wording)
        found[turn.question] = turn
    return list(found.values())


def retrieval_turns(encode: Encode, times: int, count: int) -> list[Turn]:
    """Held-out names in prose of `times` the longest training row."""
    rng = Random(f"{SEED} retrieval {times}")
    return [retrieval.sample(rng, encode, times * TRAINED_LENGTH) for _ in range(count)]


def check_whole(net: Network, encoding: Encoding, turns: list[Turn], limit: int, batch: int = 32) -> list[Checked]:
    """Right is the expected answer and nothing else."""
    said = answer_all(net, encoding, turns, limit, batch)
    return [Checked(turn, text, text == turn.answer) for turn, text in zip(turns, said, strict=True)]


def check_result(net: Network, encoding: Encoding, turns: list[Turn]) -> list[Checked]:
    """Right is the number after `####`."""
    said = answer_all(net, encoding, turns, 40)
    result = arithmetic.result
    return [Checked(turn, text, result(text) == result(turn.answer)) for turn, text in zip(turns, said, strict=True)]


def skills(net: Network, encoding: Encoding, count: int) -> dict[str, Callable[[], list[Checked]]]:
    """Every score by name, to be called one by one: `count` problems of each kind and half as many long texts."""
    known, new = (arithmetic_turns(count, new_wording=flag) for flag in (False, True))
    found: dict[str, Callable[[], list[Checked]]] = {
        "arithmetic": partial(check_result, net, encoding, known),
        "arithmetic, new wording": partial(check_result, net, encoding, new),
        "questions, by hand": partial(check_whole, net, encoding, question_turns(by_hand=True), 80),
        "questions, generic": partial(check_whole, net, encoding, question_turns(by_hand=False), 80),
    }
    for times in (1, 2, 4):
        turns = retrieval_turns(encoding.encode_ordinary, times, -(-count // 2))
        found[f"retrieval at {times}x"] = partial(check_whole, net, encoding, turns, 12, 4)
    return found


def share(checked: list[Checked]) -> float:
    return sum(c.right for c in checked) / len(checked)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
