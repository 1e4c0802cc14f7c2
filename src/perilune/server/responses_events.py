"""An answer as a response's output items, and the typed events that build them.

One writer makes both: a stream sends its events, a whole answer keeps only the items.
"""

from __future__ import annotations

import copy
import uuid
from typing import Any

from perilune.server.logprobs import token_logprob
from perilune.server.spelling import Spelling
from perilune.server.stream import Step
from perilune.text.events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart
from perilune.text.tokenizer import Tokenizer

EventBody = dict[str, Any]


class ItemWriter:
    """Takes Steps in order. At most one item is open; an event of another kind closes it.

    A message's text has the log probabilities of the tokens that spelled it, if steps bring any.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.items: list[dict[str, Any]] = []
        self._tokenizer, self._spelling = tokenizer, Spelling(tokenizer)
        self._open = False
        self._events: list[EventBody] = []

    def take(self, step: Step) -> list[EventBody]:
        """The events one step makes, without their sequence numbers."""
        self._spelling.add(step.logprobs or ())
        for event in step.events:
            if isinstance(event, ReasoningDelta):
                self._text(event.text, "reasoning")
            elif isinstance(event, ContentDelta):
                self._text(event.text, "message")
            elif isinstance(event, ToolCallStart):
                self._close("completed")
                call = {"type": "function_call", "call_id": event.id, "name": event.name, "arguments": ""}
                self._start("fc", call)
            elif isinstance(event, ToolCallArguments):
                self.items[-1]["arguments"] += event.text
                self._emit("response.function_call_arguments.delta", delta=event.text)
        if step.finish:
            self._close("incomplete" if step.finish == "length" else "completed")
        events, self._events = self._events, []
        return events

    def _text(self, text: str, kind: str) -> None:
        if not (self._open and self.items[-1]["type"] == kind):
            self._close("completed")
            if kind == "message":
                self._start("msg", {"type": kind, "role": "assistant", "content": []})
                part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            else:
                self._start("rs", {"type": kind, "summary": [], "content": []})
                part = {"type": "reasoning_text", "text": ""}
            self._emit("response.content_part.added", content_index=0, part=copy.deepcopy(part))
            self.items[-1]["content"].append(part)
        self.items[-1]["content"][0]["text"] += text
        tokens = self._spelling.take(text)
        if kind == "message":
            logprobs = [token_logprob(token, self._tokenizer).model_dump() for token in tokens]
            self.items[-1]["content"][0]["logprobs"] += logprobs
            self._emit("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)
        else:
            self._emit("response.reasoning_text.delta", content_index=0, delta=text)

    def _start(self, prefix: str, item: dict[str, Any]) -> None:
        self.items.append({"id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **item})
        self._open = True
        self._events.append(
            {
                "type": "response.output_item.added",
                "output_index": len(self.items) - 1,
                "item": copy.deepcopy(self.items[-1]),
            }
        )

    def _close(self, status: str) -> None:
        if not self._open:
            return
        item, self._open = self.items[-1], False
        item["status"] = status
        if item["type"] == "function_call":
            self._emit("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        else:
            part = copy.deepcopy(item["content"][0])
            if item["type"] == "message":
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                self._emit("response.output_text.done", content_index=0, **done)
            else:
                self._emit("response.reasoning_text.done", content_index=0, text=part["text"])
            self._emit("response.content_part.done", content_index=0, part=part)
        self._events.append(
            {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": copy.deepcopy(item)}
        )

    def _emit(self, kind: str, **fields: Any) -> None:
        self._events.append(
            {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}
        )
