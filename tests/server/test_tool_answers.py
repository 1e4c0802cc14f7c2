"""Answers with reasoning and tool calls: the same parts whether streamed or whole, however the text was cut."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from replay import ReplayEngine, Script, client_of, openai_client

from perilune.server.app import create_app
from perilune.server.config import ServerConfig

ASK: list[Any] = [{"role": "user", "content": "Weather?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    for name in ("weather", "time")
]
KIMI = (
    "<think>Let me look.</think>I will ask.<|tool_calls_section_begin|>"
    '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Bonn", "days": 2}<|tool_call_end|>'
    '<|tool_call_begin|>functions.time:1<|tool_call_argument_begin|>{"city": "Rom"}<|tool_call_end|>'
    "<|tool_calls_section_end|>"
)
GLM = (
    "<think>Let me look.</think>I will ask."
    "<tool_call>weather<arg_key>city</arg_key><arg_value>Bonn</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call>"
    "<tool_call>time<arg_key>city</arg_key><arg_value>Rom</arg_value></tool_call>"
)
KIMI_CONFIG = ServerConfig(served_model_names=("tiny",), tool_parser="kimi_k2", reasoning_parser="kimi_k2")
GLM_CONFIG = ServerConfig(served_model_names=("tiny",), tool_parser="glm47", reasoning_parser="glm45")


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(at)]


async def whole(script: Script, config: ServerConfig, **asked: Any) -> dict[str, Any]:
    answer = await openai_client(script, config).chat.completions.create(model="tiny", messages=ASK, **asked)
    message = answer.choices[0].message
    return {
        "reasoning": getattr(message, "reasoning_content", None) or "",
        "content": message.content or "",
        "calls": [(call.function.name, call.function.arguments) for call in message.tool_calls or []],
        "ids": [call.id for call in message.tool_calls or []],
        "finish": answer.choices[0].finish_reason,
    }


async def streamed(script: Script, config: ServerConfig, **asked: Any) -> dict[str, Any]:
    """What a client that puts OpenAI's deltas together ends up with."""
    found: dict[str, Any] = {"reasoning": "", "content": "", "calls": [], "ids": [], "finish": None}
    async for chunk in await openai_client(script, config).chat.completions.create(
        model="tiny", messages=ASK, stream=True, **asked
    ):
        (choice,) = chunk.choices
        found["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
        found["content"] += choice.delta.content or ""
        for part in choice.delta.tool_calls or []:
            if part.id:
                assert part.index == len(found["calls"])
                found["ids"].append(part.id)
                found["calls"].append((part.function.name, ""))
            name, arguments = found["calls"][part.index]
            found["calls"][part.index] = (name, arguments + (part.function.arguments or ""))
        found["finish"] = choice.finish_reason or found["finish"]
    return found


def check(found: dict[str, Any]) -> None:
    assert found["reasoning"] == "Let me look."
    assert found["content"] == "I will ask."
    assert [name for name, _ in found["calls"]] == ["weather", "time"]
    assert [json.loads(arguments) for _, arguments in found["calls"]] == [{"city": "Bonn", "days": 2}, {"city": "Rom"}]
    assert found["finish"] == "tool_calls"


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_kimi_answers_come_apart_the_same_way_however_cut(cuts: list[int]) -> None:
    async def both() -> None:
        for form in (whole, streamed):
            found = await form(Script(pieces_of(KIMI, cuts)), KIMI_CONFIG, tools=TOOLS)
            check(found)
            assert found["ids"] == ["functions.weather:0", "functions.time:1"]

    asyncio.run(both())


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_glm_answers_come_apart_the_same_way_however_cut(cuts: list[int]) -> None:
    async def both() -> None:
        for form in (whole, streamed):
            found = await form(Script(pieces_of(GLM, cuts)), GLM_CONFIG, tools=TOOLS)
            check(found)
            assert len(set(found["ids"])) == 2

    asyncio.run(both())


async def test_a_character_at_a_time_is_no_different() -> None:
    check(await streamed(Script(list(KIMI)), KIMI_CONFIG, tools=TOOLS))
    check(await streamed(Script(list(GLM)), GLM_CONFIG, tools=TOOLS))


async def test_tool_choice_none_reads_no_calls_and_shows_the_model_no_tools() -> None:
    script, plain = Script([KIMI]), Script([KIMI])
    found = await whole(script, KIMI_CONFIG, tools=TOOLS, tool_choice="none")
    assert found["calls"] == []
    assert found["finish"] == "stop"
    await whole(plain, KIMI_CONFIG)
    assert script.asked[0][0] == plain.asked[0][0]


async def test_parsers_switched_off_leave_the_text_alone() -> None:
    config = ServerConfig(served_model_names=("tiny",), tool_parser="none", reasoning_parser="none")
    assert (await whole(Script([KIMI]), config, tools=TOOLS))["content"] == KIMI


async def test_a_call_cut_off_by_the_limit_says_length() -> None:
    found = await streamed(Script([KIMI[:150]], finish="length"), KIMI_CONFIG, tools=TOOLS)
    assert found["finish"] == "length"
    assert found["calls"][0][0] == "weather"


async def test_forced_answers_are_calls_with_the_conversations_next_id() -> None:
    past = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "functions.time:0", "type": "function", "function": {"name": "time", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "functions.time:0", "content": "noon"},
    ]  # fmt: skip
    script = Script(['{"ci', 'ty": "Bonn"}'])
    app = create_app(ReplayEngine(script), KIMI_CONFIG)
    answer = await client_of(app).chat.completions.create(
        model="tiny", messages=past, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    await app.state.front.grammars.close()
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("functions.weather:1", "weather")
    assert call.function.arguments == '{"city": "Bonn"}'
    grammar = script.asked[0][1].grammar
    assert grammar is not None
    assert "city" in json.loads(grammar.text)["properties"]


async def test_responses_give_reasoning_message_and_calls_as_items() -> None:
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    client = openai_client(Script(list(KIMI)), KIMI_CONFIG)
    answer = await client.responses.create(model="tiny", input="Weather?", tools=flat)
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert answer.output[0].content[0].text == "Let me look."
    assert answer.output_text == "I will ask."
    assert answer.output[2].call_id == "functions.weather:0"
    stream = await client.responses.create(model="tiny", input="Weather?", tools=flat, stream=True)
    events = [event async for event in stream]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [(item.type, item.status) for item in done] == [(item.type, "completed") for item in answer.output]
    assert events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == [item.type for item in answer.output]
    added = [event.output_index for event in events if event.type == "response.output_item.added"]
    assert added == [0, 1, 2, 3]
