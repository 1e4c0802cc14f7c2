"""What a chat completion request may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from perilune.engine.request import MAX_LOGPROBS, Grammar
from perilune.errors import RequestError
from perilune.server.body import INT32_MAX, LooseBody, unsupported
from perilune.server.conversation import Conversation, Named, ToolChoice, opens_turn
from perilune.server.marks import MARK_SCHEMA
from perilune.server.sampling import SamplingFields, only_one, text_of

_MESSAGE_SCHEMA = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "type": {"const": "text"},
                            "text": {"type": "string"},
                            "cache_control": MARK_SCHEMA,
                        },
                        "required": ["type", "text"],
                    },
                },
                {"type": "null"},
            ]
        },
        "name": {"type": "string"},
        "reasoning_content": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": {"type": "string"},
        "cache_control": MARK_SCHEMA,
    },
}
_TOOL_SCHEMA = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "cache_control": MARK_SCHEMA,
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}$"},
                "description": {"type": "string"},
                "parameters": {"type": "object"},
                "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}


def _calls_belong_to_the_assistant(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("tool_calls") and message.get("role") != "assistant":
        raise unsupported("Only a message of the assistant can have tool_calls.")
    return message


# Kept as they came and checked by text/messages.py: a template may use keys, and their order, that no model here knows.
Message = Annotated[dict[str, Any], AfterValidator(_calls_belong_to_the_assistant), WithJsonSchema(_MESSAGE_SCHEMA)]
Tool = Annotated[dict[str, Any], WithJsonSchema(_TOOL_SCHEMA)]


class _Function(LooseBody):
    name: str


class NamedToolChoice(LooseBody):
    type: Literal["function"]
    function: _Function


class JsonSchemaFormat(LooseBody):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(LooseBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def grammar(self) -> Grammar | None:
        """Raises RequestError for a json_schema without its schema."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar("json_object")
        if self.json_schema is None or self.json_schema.schema_ is None:
            raise RequestError(
                "response_format has no json_schema.schema.",
                'Its type is "json_schema".',
                'Write {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
                param="response_format",
            )
        return Grammar("json_schema", text_of(self.json_schema.schema_))


class ChatBody(SamplingFields):
    """POST /v1/chat/completions: OpenAI's fields, with vLLM's extra ones."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None  # yes, unless the final message is continued
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    # Accepted because OpenAI's clients send them; nothing here acts on them.
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    modalities: list[Literal["text"]] | None = None

    def top(self) -> int | None:
        """SamplingParams.logprobs. Raises RequestError for top_logprobs without logprobs."""
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise RequestError("top_logprobs needs logprobs.", fix='Set "logprobs": true.', param="top_logprobs")
        return None

    def choice(self) -> ToolChoice:
        if isinstance(self.tool_choice, NamedToolChoice):
            return Named(self.tool_choice.function.name)
        return self.tool_choice or "auto"

    def conversation(self) -> Conversation:
        """Raises RequestError naming the field."""
        template = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            template.setdefault("reasoning_effort", self.reasoning_effort)
        formats = [grammar] if self.response_format and (grammar := self.response_format.grammar()) else []
        return Conversation(
            messages=self.messages,
            tools=self.tools or (),
            tool_choice=self.choice(),
            template=template,
            add_generation_prompt=opens_turn(self.add_generation_prompt, self.continue_final_message),
            continue_final_message=bool(self.continue_final_message),
            grammar=only_one([*formats, *self.grammars()]),
        )
