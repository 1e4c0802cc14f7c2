"""One machine that turns an answer's text into reasoning, content and tool calls, streamed or whole.

It works on markers: text up to the next marker that counts in the present state belongs to that state. Text that
could be the start of such a marker waits. So any way of cutting the answer gives the same events after merging.
"""

from __future__ import annotations

from collections.abc import Callable

from perilune.text.chat import ChatTemplate
from perilune.text.events import Event, Events, Text, random_id
from perilune.text.holdback import held_back
from perilune.text.reasoning import ReasoningFormat
from perilune.text.tokenizer import Tokenizer
from perilune.text.toolcalls import CALL, OPEN, SECTION, Region, Schemas, ToolFormat


class OutputParser:
    """`push` text as it comes, then `finish` once. Without formats, everything is content.

    Malformed output raises nothing and loses nothing but blank space around markers and markers without a meaning.
    """

    def __init__(
        self,
        reasoning: ReasoningFormat | None,
        tools: ToolFormat | None,
        schemas: Schemas | None = None,
        *,
        starts_in_reasoning: bool = False,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        """`schemas`: tool name to JSON schema. `new_id` names calls whose format has no ids of its own."""
        self._reasoning, self._tools, self._schemas = reasoning, tools, schemas or {}
        self._events = Events(new_id)
        self._thought = Text()
        self._thinks = starts_in_reasoning and reasoning is not None
        if self._thinks:
            self._thought.cut()
        self._region: Region | None = None
        self._waiting = ""

    def push(self, text: str) -> list[Event]:
        self._waiting += text
        while True:
            markers = self._markers()
            found = [(at, marker) for marker in markers if (at := self._waiting.find(marker)) >= 0]
            if not found:
                break
            at, marker = min(found)
            before, self._waiting = self._waiting[:at], self._waiting[at + len(marker) :]
            self._text(before)
            if marker in self._markers():
                self._marker(marker)
            else:  # the text before it ended the state in which it counts
                self._text(marker)
        safe = len(self._waiting) - held_back(self._waiting, markers)
        before, self._waiting = self._waiting[:safe], self._waiting[safe:]
        self._text(before)
        return self._events.take()

    def finish(self) -> list[Event]:
        """The answer is over: what waited comes out, open calls end."""
        self._text(self._waiting)
        self._waiting = ""
        if self._region is not None:
            self._region.finish()
            self._region = None
        self._events.finish_content()
        return self._events.take()

    def _markers(self) -> tuple[str, ...]:
        """The markers that count now, given all text so far."""
        if self._region is not None:
            return self._region.markers
        think = (self._reasoning.begin, self._reasoning.end) if self._reasoning else ()
        if self._thinks:
            early_calls = self._tools.opens if self._tools and self._tools.ends_reasoning else ()
            return (*(think[1:] if self._thought.wrote else think), *early_calls)
        calls = (*self._tools.opens, *self._tools.strays) if self._tools else ()
        return calls if self._events.content.wrote else (*think, *calls)

    def _text(self, text: str) -> None:
        if not text:
            return
        if self._region is not None:
            self._region.text(text)
        elif self._thinks:
            self._events.add_reasoning(self._thought.push(text))
        else:
            self._events.add_content(text)

    def _marker(self, marker: str) -> None:
        if self._region is None and self._tools is not None and marker in self._tools.opens:
            self._thinks = False
            self._region = self._tools.region(self._events, self._schemas)
        if self._region is not None:
            self._region.marker(marker)
            if self._region.done:
                self._region = None
        elif self._reasoning is not None and marker in (self._reasoning.begin, self._reasoning.end):
            self._thinks = marker == self._reasoning.begin
            self._thought.cut()
            self._events.content.cut()


def default_parsers(family: str, tokenizer: Tokenizer, template: ChatTemplate | None) -> tuple[str | None, str | None]:
    """Names in TOOL_PARSERS and REASONING_PARSERS for a model of `family`, by the markers its vocabulary has.

    DeepSeek's family also holds Kimi-K2, so the vocabulary decides, not the family's name alone.
    """
    markers = tokenizer.special_ids
    thinks = "<think>" in markers or (template is not None and template.writes("<think>"))
    if SECTION in markers or CALL in markers or family.startswith("kimi"):
        return ("kimi_k2" if SECTION in markers or CALL in markers else None), ("kimi_k2" if thinks else None)
    if family.startswith("glm"):
        return ("glm47" if OPEN in markers else None), ("glm45" if thinks else None)
    return None, None
