"""What a Responses request may say, and its way into a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from perilune.engine.request import MAX_LOGPROBS, Grammar
from perilune.errors import RequestError, UnsupportedError
from perilune.server.body import INT32_MAX, LooseBody
from perilune.server.conversation import Conversation, Named, ToolChoice
from perilune.server.marks import FIELD, MARK_SCHEMA
from perilune.server.sampling import SamplingFields, only_one, text_of

_ITEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"enum": ["message", "function_call", "function_call_output", "reasoning"]},
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "cache_control": MARK_SCHEMA,
    },
}
_TOOL_SCHEMA = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {
        "type": {"const": "function"},
        "name": {"type": "string"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
        "cache_control": MARK_SCHEMA,
    },
}

_LOGPROBS = "message.output_text.logprobs"

Item = Annotated[dict[str, Any], WithJsonSchema(_ITEM_SCHEMA)]
FlatTool = Annotated[dict[str, Any], WithJsonSchema(_TOOL_SCHEMA)]


class FlatToolChoice(LooseBody):
    type: Literal["function"]
    name: str


class TextFormat(LooseBody):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(LooseBody):
    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningOptions(LooseBody):
    effort: str | None = None
    summary: str | None = None


class ResponsesBody(SamplingFields):
    """POST /v1/responses. Nothing is kept between requests: the whole conversation comes with each."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatToolChoice | None = None
    text: TextOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Accepted because OpenAI's clients send them; nothing here acts on them.
    store: bool | None = None
    parallel_tool_calls: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    def top(self) -> int | None:
        """SamplingParams.logprobs. Raises RequestError for top_logprobs of log probabilities nobody asked for."""
        if _LOGPROBS in (self.include or []):
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise RequestError(
                f'top_logprobs needs "{_LOGPROBS}".', fix=f'Add "include": ["{_LOGPROBS}"].', param="top_logprobs"
            )
        return None

    def refuse_unsupported(self) -> None:
        """Raises UnsupportedError for what needs a store of past responses, or has no place in one answer."""
        if self.previous_response_id:
            raise UnsupportedError(
                "previous_response_id is not supported.", "This server keeps no responses.",
                "Send the whole conversation in input.", param="previous_response_id",
            )  # fmt: skip
        if self.background:
            raise UnsupportedError(
                "background is not supported.", "This server keeps no responses.", "Use stream.", param="background"
            )
        if self.truncation == "auto":
            raise UnsupportedError(
                'truncation "auto" is not supported.', "Input is never dropped silently.",
                "Shorten input.", param="truncation",
            )  # fmt: skip
        if self.n not in (None, 1):
            raise UnsupportedError("A response has one answer.", f"n is {self.n}.", "Leave n out.", param="n")

    def conversation(self) -> Conversation:
        """Raises RequestError or UnsupportedError naming the field."""
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        instructions = [{"role": "system", "content": self.instructions}] if self.instructions else []
        choice: ToolChoice = (
            Named(self.tool_choice.name) if isinstance(self.tool_choice, FlatToolChoice) else self.tool_choice or "auto"
        )
        template = dict(self.chat_template_kwargs or {})
        if self.reasoning and self.reasoning.effort is not None:
            template.setdefault("reasoning_effort", self.reasoning.effort)
        formats = [grammar] if (grammar := self._format_grammar()) else []
        return Conversation(
            messages=[*instructions, *messages_of(items)],
            tools=[_chat_tool(tool, f"tools[{i}]") for i, tool in enumerate(self.tools or [])],
            tool_choice=choice,
            template=template,
            grammar=only_one([*formats, *self.grammars()]),
        )

    def _format_grammar(self) -> Grammar | None:
        form = self.text.format if self.text else None
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return Grammar("json_object")
        if form.schema_ is None:
            raise RequestError("text.format has no schema.", 'Its type is "json_schema".', param="text.format")
        return Grammar("json_schema", text_of(form.schema_))


def messages_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages of input items. Reasoning, text and calls that follow each other are one assistant's message."""
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        kind = item.get("type", "message")
        if kind == "message":
            message = {"role": item.get("role"), "content": _content(item.get("content")), **_mark(item)}
            last = messages[-1] if messages else {}
            if message["role"] == "assistant" and last.get("role") == "assistant" and "content" not in last:
                last |= message
            else:
                messages.append(message)
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id") or "", "type": "function", "function": function}
            _assistant(messages).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = _content(item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content, **_mark(item)})
        elif kind == "reasoning":
            messages.append({"role": "assistant", "reasoning_content": _reasoning(item)})
        else:
            raise UnsupportedError(
                f"{where} has type {str(kind)[:100]!r}.",
                "Messages, function calls, their outputs and reasoning are read.",
                "Leave it out.", param=where,
            )  # fmt: skip
    return messages


def _mark(item: Mapping[str, Any]) -> dict[str, Any]:
    return {FIELD: item[FIELD]} if FIELD in item else {}


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not messages or messages[-1].get("role") != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _content(content: Any) -> Any:
    """Text parts under their chat name; anything else is left for the check of messages to refuse."""
    if not isinstance(content, list):
        return content
    return [_part(part) for part in content]


def _part(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _reasoning(item: dict[str, Any]) -> str:
    parts = item.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _chat_tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise UnsupportedError(
            f"{where} is not a function tool.", "This server runs no tools of its own.", "Leave it out.", param=where
        )
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function, **_mark(tool)}
