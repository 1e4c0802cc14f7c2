"""Ids to text while they arrive: whole characters only, cut at stop strings. The same text for any split of the ids."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from perilune.text.holdback import held_back
from perilune.text.tokenizer import Tokenizer


class Detokenizer:
    """Holds back the bytes of an unfinished character. Joined output equals `tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        return self._utf8.decode(self._tokenizer.join_bytes(ids, skip_special=self._skip_special))

    def finish(self) -> str:
        """What was held back: U+FFFD if the ids ended inside a character."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Finds the stop string that is complete first (of several ending together, the longest).

    First by its end, not its start: that is where generation stops, however the text was cut into pieces.
    `matched` is that string, or None. After a match nothing more comes out.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self._stop, self._include = tuple(stop), include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is certainly not the start of a stop string."""
        if self.matched is not None:
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            end, at, self.matched = min(found)
            self._held = ""
            return text[: end if self._include else at]
        safe = len(text) - held_back(text, self._stop)
        self._held = text[safe:]
        return text[:safe]

    def pass_through(self, text: str) -> str:
        """`text` without looking for a stop string in it, after what was held back."""
        text, self._held = self._held + text, ""
        return "" if self.matched is not None else text

    def finish(self) -> str:
        """What was held back and never became a stop string."""
        return self.pass_through("")


class TextStream:
    """One sequence's text: detokenise, then stop strings. `stopped` is the stop string that ended it, or None."""

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), include_stop: bool = False, skip_special: bool = True
    ) -> None:
        self._chars = Detokenizer(tokenizer, skip_special=skip_special)
        self._stop = StopStrings(stop, include=include_stop)

    @property
    def stopped(self) -> str | None:
        return self._stop.matched

    def push(self, ids: Sequence[int], *, match_stops: bool = True) -> str:
        """Text that `ids` add. With `match_stops=False` (before `min_tokens`) no stop string is looked for in it."""
        text = self._chars.push(ids)
        return self._stop.push(text) if match_stops else self._stop.pass_through(text)

    def finish(self) -> str:
        """Everything held back; a stop string may still complete here, on a character that had been cut."""
        return self._stop.push(self._chars.finish()) + self._stop.finish()
