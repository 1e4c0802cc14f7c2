"""Tokens go to the piece of text they spelled, however answer and tokens were cut."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perilune.engine.request import TokenLogprobs
from perilune.server.spelling import Spelling


class Bytes:
    """A vocabulary given as a list; the token `</think>` is a marker."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.special_ids = {piece.decode(): i for i, piece in enumerate(pieces) if piece == b"</think>"}

    def token_bytes(self, token: int) -> bytes:
        return self._pieces[token]


def spelling(*pieces: bytes) -> tuple[Spelling, list[TokenLogprobs]]:
    vocabulary: Any = Bytes(list(pieces))
    return Spelling(vocabulary), [TokenLogprobs(token, -1.0) for token in range(len(pieces))]


@given(
    text=st.text(st.sampled_from("ab é漢🦊"), min_size=1, max_size=30),
    lengths=st.lists(st.integers(1, 5), min_size=1),
    held=st.lists(st.integers(0, 4), min_size=1),
)
def test_every_token_comes_out_once_and_in_order(text: str, lengths: list[int], held: list[int]) -> None:
    """Tokens of any lengths in bytes arrive one by one; each time all but the last few characters come out."""
    data, pieces = text.encode(), []
    while data:
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(data[:length])
        data = data[length:]
    spells, tokens = spelling(*pieces)
    taken, out = [], ""
    for place, token in enumerate(tokens):
        spells.add([token])
        whole = b"".join(pieces[: place + 1]).decode(errors="ignore")
        kept = held[place % len(held)] if place + 1 < len(tokens) else 0
        new = whole[len(out) : max(len(out), len(whole) - kept)]
        if new:
            taken += spells.take(new)
            out += new
    assert (out, taken) == (text, tokens)


def test_markers_and_dropped_blanks_before_a_piece_are_forgotten() -> None:
    spells, (think, blank, word) = spelling(b"</think>", b"\n\n", b"think")
    spells.add([think, blank])
    spells.add([word])
    assert spells.take("think") == [word]
    assert spells.take("more") == []


def test_a_marker_that_is_text_after_all_is_accounted_for() -> None:
    spells, tokens = spelling(b"a", b"</think>", b"b")
    spells.add(tokens)
    assert spells.take("a</think>b") == tokens


def test_what_is_held_back_waits_and_a_token_in_two_pieces_belongs_to_the_first() -> None:
    spells, (first, second, third) = spelling(b"one", b" <th", b"ree")
    spells.add([first, second])
    assert spells.take("one ") == [first, second]
    spells.add([third])
    assert spells.take("<three") == [third]


def test_a_character_of_several_tokens_has_them_all() -> None:
    spells, tokens = spelling("é".encode()[:1], "é".encode()[1:], b"!")
    spells.add(tokens)
    assert spells.take("é!") == tokens


def test_bytes_that_are_no_character_are_still_accounted_for() -> None:
    spells, tokens = spelling(b"\xe2", b"x")
    spells.add(tokens)
    assert spells.take("\ufffdx") == tokens
