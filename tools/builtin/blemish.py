"""Small blemishes for questions, so that the model learns their sense and not their wording. Training only."""

from __future__ import annotations

from random import Random

_OPENINGS = """
    Please tell me:
    Quick question:
    Hi!
    Hello,
    I wonder:
    Please answer:
    So,
    Ok,
    One more thing:
    Sorry, I am new here.
    I read about this somewhere.
    Just curious:
    Maybe a silly question:
    And
    Well,
    My friend asks:
    In your words,
    I am confused.
    For my notes:
    Question:
    Hey,
    Right,
"""
_CLOSINGS = """
    Thanks!
    Please be brief.
    Thank you.
    Answer in short.
    Please.
    I am new to this.
    I forgot.
    Just curious.
    In one sentence please.
    That would help me.
    Asking for a friend.
"""
_SMALL = "a an and are at can do does for has have i in is it my of on the to with"
_SYNONYMS = """
    memory: RAM, space
    box: machine, computer, PC
    machine: box, computer, host
    big: large
    large: big
    fast: quick, quickly
    store: keep, hold, save
    stored: kept, held, saved
    keep: store, hold, save
    hold: store, keep
    need: want, require
    use: take, employ
    used: taken, employed
    why: for what reason, how come
    happens: takes place
    show: tell, give
    explain: describe, clarify
    many: much
    size: width, volume
    purpose: point, goal, use
    difference: gap, contrast
    choose: pick, select
    pick: choose, select
    split: divide, cut
    value: number, setting
    begin: start
    start: begin
    end: finish, stop
    wrong: bad, broken
    error: failure, problem
    request: prompt, call
    requests: prompts, calls
    text: prose, words
    good: fine, right
    set: put, choose
    check: test, verify
    limit: bound, cap
    kind: sort, type
    type: kind, sort
"""


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


OPENINGS, CLOSINGS, SMALL = _lines(_OPENINGS), _lines(_CLOSINGS), frozenset(_SMALL.split())
SYNONYMS = {word: tuple(others.split(", ")) for word, others in (line.split(": ") for line in _lines(_SYNONYMS))}


def blemished(rng: Random, text: str) -> str:
    """As people type: other words, words dropped, doubled or swapped, slips of the finger, an opening, no capitals."""
    words = text.split()
    if rng.random() < 0.6 and len(words) > 3:
        words = [_other_word(rng, word) for word in words]
        lost = [rng.random() < (0.2 if word.lower() in SMALL else 0.06) for word in words]
        words = [word for word, gone in zip(words, lost, strict=True) if not gone] or words
        if rng.random() < 0.15:
            i = rng.randrange(len(words))
            j = min(i + 1, len(words) - 1)
            words[i], words[j] = words[j], words[i]
        text = " ".join(words)
    if rng.random() < 0.2:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.12:
        text += f" {rng.choice(CLOSINGS)}"
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text


def _other_word(rng: Random, word: str) -> str:
    """Now and then a synonym, or two letters swapped."""
    bare = word.strip("?.,!").lower()
    if bare in SYNONYMS and rng.random() < 0.25:
        return word.lower().replace(bare, rng.choice(SYNONYMS[bare]))
    if len(bare) > 4 and bare.isalpha() and rng.random() < 0.02:
        i = rng.randrange(len(word) - 1)
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word
