"""Which tokens spelled a piece of an answer's text, for log probabilities that belong to that piece alone."""

from __future__ import annotations

from collections.abc import Sequence

from perilune.engine.request import TokenLogprobs
from perilune.text.tokenizer import Tokenizer


class Spelling:
    """Tokens wait here until the text they spell comes out, which may be later: a character, a stop string or a marker
    could still have become of it. Markers and dropped blanks never come out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._markers = tokenizer, frozenset(tokenizer.special_ids.values())
        self._waiting: list[tuple[bytes, TokenLogprobs | None]] = []

    def add(self, tokens: Sequence[TokenLogprobs]) -> None:
        for token in tokens:
            spelled = b"" if token.token_id in self._markers else self._tokenizer.token_bytes(token.token_id)
            self._waiting.append((spelled, token))

    def take(self, text: str) -> list[TokenLogprobs]:
        """The tokens that spelled `text`, the next piece of the answer. What is before it is forgotten.

        A token that begins in one piece and ends in the next belongs to the first.
        """
        spelled, wanted = b"".join(piece for piece, _ in self._waiting), text.encode()
        start = spelled.find(wanted)
        if start < 0:  # a marker that is text after all, or bytes that are no character and came out as U+FFFD
            taken = [token for _, token in self._waiting if token is not None]
            self._waiting.clear()
            return taken
        end, at, taken, rest = start + len(wanted), 0, [], []
        for piece, token in self._waiting:
            if token is not None and at < end and at + len(piece) > start:
                taken.append(token)
            if at + len(piece) > end:
                rest.append((piece[max(0, end - at) :], None if at < end else token))
            at += len(piece)
        self._waiting = rest
        return taken
