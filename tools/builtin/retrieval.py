"""Codes hidden in generated prose, and questions for them."""

from __future__ import annotations

from random import Random

from builtin.chat import Encode, Turn
from builtin.split import held_out

_COLOURS = (
    "blue", "red", "green", "white", "black", "golden", "silver", "grey", "brown", "old", "new", "small", "tall",
    "quiet", "northern", "southern", "eastern", "western", "stone", "wooden", "hidden", "sunny", "cold", "warm",
    "empty", "busy", "narrow", "broken", "distant", "bright",
)  # fmt: skip
_PLACES = (
    "harbour", "mill", "tower", "bridge", "garden", "station", "library", "market", "castle", "forest", "lake",
    "house", "island", "school", "gate", "valley", "river", "church", "farm", "cabin", "village", "museum", "theatre",
    "tunnel", "field", "hill", "port", "road", "shop", "well", "barn", "camp", "cave", "cellar", "chapel", "cottage",
    "court", "dam", "ferry", "hotel",
)  # fmt: skip
NAMING_WORDS = _COLOURS + _PLACES
_PEOPLE = (
    "keeper", "captain", "teacher", "baker", "painter", "doctor", "farmer", "child", "guide", "writer", "sailor",
    "cook",
)  # fmt: skip
_DEEDS = (
    "walked along the shore", "counted the boats", "opened a window", "read a long letter", "waited for the rain",
    "looked at the clouds", "sang an old song", "bought some bread", "closed the door", "lit a lamp", "told a story",
    "watched the birds", "went home late", "drank a cup of tea", "cleaned the floor", "wrote a short note",
    "carried a heavy bag", "found a lost coin", "slept until noon", "talked to a friend",
)  # fmt: skip
_TIMES = (
    "In the morning", "At noon", "In the evening", "After lunch", "On Sunday", "Before dawn", "Later", "That day",
    "In winter",
)  # fmt: skip
_VISITORS = ("bird", "cat", "dog", "horse", "boat")
_KINDS = ("code", "code", "code", "code", "key", "number")
_ASKS = ("What is the {kind} of the {place}?", "Tell me the {kind} of the {place}.", "Which {kind} has the {place}?")
_ASKS_DENSE = ("What is the {kind} of the {place}?", "The {kind} of the {place}?", "And the {kind} of the {place}?")
_HEADS = ("Read this text. ", "Here is a text. ", "Remember the codes in this text. ", "")

Needle = tuple[str, str, str]
"""What it is (code, key, number), where, and the four digits."""


def place(rng: Random, *, test: bool) -> str:
    """ "blue harbour": one of 1200 names, of which one in eight occurs in tests only."""
    while True:
        name = f"{rng.choice(_COLOURS)} {rng.choice(_PLACES)}"
        if held_out(name, 8) == test:
            return name


def filler(rng: Random) -> str:
    """One sentence of no importance."""
    person = rng.choice(_PEOPLE)
    deeds = rng.sample(_DEEDS, 2)
    form = rng.randrange(4)
    if form == 0:
        return f"The {person} {deeds[0]} and {deeds[1]}."
    if form == 1:
        return f"{rng.choice(_TIMES)} the {person} {deeds[0]}."
    if form == 2:
        return f"The {person} of the {rng.choice(_PLACES)} {deeds[0]}."
    return f"{rng.choice(_TIMES)} a {rng.choice(_COLOURS)} {rng.choice(_VISITORS)} came by."


def needles(rng: Random, count: int, *, test: bool) -> list[Needle]:
    """`count` needles about different things."""
    found: dict[tuple[str, str], str] = {}
    while len(found) < count:
        found[rng.choice(_KINDS), place(rng, test=test)] = "".join(rng.choice("0123456789") for _ in range(4))
    return [(kind, where, digits) for (kind, where), digits in found.items()]


def sentence(needle: Needle) -> str:
    kind, where, digits = needle
    return f"The {kind} of the {where} is {digits}."


def reply(needle: Needle) -> str:
    """The answer to a question for it."""
    kind, _, digits = needle
    return f"The {kind} is {digits}."


def turns(rng: Random, encode: Encode, room: int, density: float) -> list[Turn]:
    """A text with needles and one or more questions on it, about `room` tokens together.

    `density` is the share of needles among the sentences. As many questions follow as there is room for.
    """
    queries = rng.choice((1, 2, 3, 4)) if density < 0.3 else max(1, room // 60)
    budget = room - 32 * queries - 10
    sentences: list[str] = []
    hidden: list[Needle] = []
    while budget > 0:
        if rng.random() < density or not hidden:
            fresh = needles(rng, 1, test=False)[0]
            if fresh[:2] in {known[:2] for known in hidden}:
                continue
            hidden.append(fresh)
            sentences.append(sentence(fresh))
        else:
            sentences.append(filler(rng))
        budget -= len(encode(" " + sentences[-1]))
    order = rng.sample(range(len(sentences)), len(sentences))
    asked = rng.sample(hidden, min(queries, len(hidden)))
    text = " ".join(sentences[i] for i in order)
    return _ask(rng, text, asked)


def _ask(rng: Random, text: str, asked: list[Needle]) -> list[Turn]:
    found = []
    for i, needle in enumerate(asked):
        question = rng.choice(_ASKS if i == 0 else _ASKS_DENSE).format(kind=needle[0], place=needle[1])
        if i == 0:
            question = f"{rng.choice(_HEADS)}{text}\n\n{question}"
        found.append(Turn(question, reply(needle), "retrieval"))
    return found


def sample(rng: Random, encode: Encode, length: int, hidden: int = 4) -> Turn:
    """A test: about `length` tokens of prose with `hidden` needles at random depths, one of them asked for."""
    found = needles(rng, hidden, test=True)
    sentences = [sentence(needle) for needle in found]
    budget = length - 40 - sum(len(encode(" " + s)) for s in sentences)
    while budget > 0:
        sentences.append(filler(rng))
        budget -= len(encode(" " + sentences[-1]))
    rng.shuffle(sentences)
    needle = rng.choice(found)
    question = _ASKS[0].format(kind=needle[0], place=needle[1])
    return Turn(f"Read this text. {' '.join(sentences)}\n\n{question}", reply(needle), "retrieval")
