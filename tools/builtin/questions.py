"""Questions and answers on perilune and its subject: questions.txt and generic phrasings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from builtin.blemish import blemished
from builtin.chat import Turn

SOURCE = Path(__file__).with_name("questions.txt")

_GENERIC = (
    "What is {}?",
    "What's {}?",
    "Explain {}.",
    "Explain {} in one sentence.",
    "Can you explain {}?",
    "Tell me about {}.",
    "Describe {}.",
    "Define {}.",
    "Please explain what {} is.",
    "I want to know what {} is.",
    "What does {} mean?",
    "{}?",
    "Give me a short description of {}.",
    "In short, what is {}?",
    "What do you know about {}?",
    "I do not understand {}.",
)
_GENERIC_HELD_OUT = (
    "What exactly is {}?",
    "Could you describe {} for me?",
    "Help me understand {}.",
    "Do you know what {} is?",
)


@dataclass(frozen=True)
class Topic:
    """One answer, the phrasings trained on, and those held out: written by hand, or from generic forms."""

    name: str
    answer: str
    asked: tuple[str, ...]
    by_hand: tuple[str, ...]
    generic: tuple[str, ...]

    @property
    def held_out(self) -> tuple[str, ...]:
        return self.by_hand + self.generic


def topics() -> list[Topic]:
    """Every topic of questions.txt. A phrasing that two topics share, or that is on both sides, is an error."""
    found = [_topic(block) for block in SOURCE.read_text().split("\n@ ")[1:]]
    owner: dict[str, str] = {}
    for topic in found:
        for text in (*topic.asked, *topic.held_out):
            other = owner.setdefault(text.lower(), topic.name) != topic.name
            if other or (text in topic.asked and text in topic.held_out):
                raise ValueError(f"questions.txt: {text!r} occurs twice ({owner[text.lower()]} and {topic.name})")
    return found


def _topic(block: str) -> Topic:
    name, *lines = block.strip().splitlines()
    entries: dict[str, list[str]] = {"S": [], "Q": [], "H": [], "A": []}
    for line in lines:
        entries[line[0]].append(line[3:])
    subjects = [s.strip() for line in entries["S"] for s in line.split("|")]
    generic = [_capital(form.format(s)) for s in subjects for form in _GENERIC]
    generic_held_out = [_capital(form.format(s)) for s in subjects for form in _GENERIC_HELD_OUT]
    by_hand = tuple(entries["H"])
    generic_held_out = [q for q in dict.fromkeys(generic_held_out) if q not in by_hand]
    asked = [q for q in dict.fromkeys(entries["Q"] + generic) if q not in (*by_hand, *generic_held_out)]
    return Topic(name, entries["A"][0], tuple(asked), by_hand, tuple(generic_held_out))


def _capital(text: str) -> str:
    """Upper case at the start of a sentence, but `amdgpu.gttsize` and `gfx1151` stay as they are."""
    first = text.split()[0]
    return text[0].upper() + text[1:] if first.isalpha() else text


def turn(rng: Random, found: list[Topic]) -> Turn:
    """A random topic in a random training phrasing, sometimes with small blemishes."""
    topic = rng.choice(found)
    return Turn(blemished(rng, rng.choice(topic.asked)), topic.answer, topic.name)
