"""Messages and tools to one engine job and the reader of its answer. Chat and Responses both come through here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from perilune.engine.request import Grammar, Handover, SamplingParams
from perilune.errors import RequestError, nearest
from perilune.server.forced import ArgumentsReader, NamedCallReader, forced_grammar
from perilune.server.front import Front, Job
from perilune.server.marks import place_marks, take_marks
from perilune.server.stream import PlainReader, Reader
from perilune.text.chat import Prompt

_NO_THINKING = {"enable_thinking": False, "thinking": False}
"""What GLM's and Kimi's templates call it. A constrained answer has no room for reasoning."""


@dataclass(frozen=True)
class Named:
    """`tool_choice` that names a function."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | Named


def opens_turn(add_generation_prompt: bool | None, continue_final_message: bool | None) -> bool:
    """Whether the prompt ends with the opening of the assistant's turn. Raises RequestError if asked for both ends."""
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other.",
            "The answer goes on with the final message, or begins a new one.",
            'Set "add_generation_prompt": false.',
            param="continue_final_message",
        )
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt


@dataclass(frozen=True)
class Conversation:
    """`tools` in chat form. `template` are further variables for the chat template. `grammar` constrains the answer."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoice = "auto"
    template: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Prepared:
    """A job, and how each of its choices is read."""

    job: Job
    make_reader: Callable[[], Reader]


async def prepare(
    front: Front,
    conversation: Conversation,
    sampling: Callable[[Grammar | None], SamplingParams],
    salt: bytes,
    handover: Handover | None = None,
) -> Prepared:
    """Renders the prompt and checks the grammar; `sampling` makes the parameters once the grammar is known.

    `salt`: whose prefixes the prompt may share (`Front.salt`). `handover`: whether another engine reads the prompt or
    answers it.

    Raises RequestError or UnsupportedError naming the field.
    """
    template = front.chat_template()
    forced = _forced_functions(conversation)
    grammar = conversation.grammar
    if forced:
        if grammar:
            raise RequestError(
                "tool_choice forces a call and another field constrains the answer.",
                "An answer is one or the other.",
                'Drop response_format, or set tool_choice to "auto".',
                param="tool_choice",
            )
        if conversation.continue_final_message:
            raise RequestError(
                "tool_choice forces a call, and the final message is to be continued.",
                "A message that has begun as text does not become a call.",
                'Drop continue_final_message, or set tool_choice to "auto".',
                param="tool_choice",
            )
        grammar = forced_grammar(forced)
    params = sampling(grammar)
    front.require_capacity(params.n)
    if grammar:
        await front.grammars.check(grammar, "tools" if forced else "response_format")
    unmarked = take_marks(conversation.messages, conversation.tools if conversation.tool_choice != "none" else ())
    extra = {**(_NO_THINKING if grammar else {}), **conversation.template}

    def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Prompt:
        return template.render(
            messages,
            tools,
            add_generation_prompt=conversation.add_generation_prompt,
            continue_final_message=conversation.continue_final_message,
            extra=extra,
        )

    def render_all() -> tuple[Prompt, list[int | None]]:
        prompt = render(unmarked.messages, unmarked.tools)
        return prompt, place_marks(unmarked, prompt, render)

    # Rendering and tokenising a long prompt takes long enough to make every other stream stutter.
    prompt, places = await asyncio.to_thread(render_all)
    front.metrics.count_marks(places)
    make_reader: Callable[[], Reader]
    if forced:
        number = _past_calls(conversation.messages)
        name = forced[0]["name"]
        make_reader = (lambda: ArgumentsReader(name, number)) if len(forced) == 1 else (lambda: NamedCallReader(number))
    elif grammar:
        make_reader = PlainReader
    else:
        make_reader = front.parsers.readers(unmarked.tools, prompt.starts_in_reasoning)
    marks = tuple(sorted({place for place in places if place is not None}))
    return Prepared(Job(prompt.ids, params, salt, marks, handover), make_reader)


def _forced_functions(conversation: Conversation) -> list[dict[str, Any]]:
    """The functions one of which must be called; empty if the model may choose not to."""
    choice = conversation.tool_choice
    if choice in ("none", "auto"):
        return []
    functions = [f for tool in conversation.tools if isinstance(f := tool.get("function"), dict)]
    names = [str(function.get("name")) for function in functions]
    if not functions:
        raise RequestError("tool_choice asks for a call, but there are no tools.", param="tool_choice")
    if isinstance(choice, Named):
        functions = [f for f in functions if f.get("name") == choice.name]
        if not functions:
            why = f"No tool is called {choice.name[:100]!r}."
            raise RequestError(why, nearest(choice.name[:100], names), param="tool_choice")
    if not all(isinstance(function.get("name"), str) for function in functions):
        raise RequestError("A tool has no name.", param="tools")
    return functions[:1] if isinstance(choice, Named) else functions


def _past_calls(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many calls the conversation holds: Kimi numbers them all the way through."""
    lists = (message.get("tool_calls") for message in messages if isinstance(message, Mapping))
    return sum(len(calls) for calls in lists if isinstance(calls, list))
