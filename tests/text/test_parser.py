"""Answers in every format, cut at every byte: always the same reasoning, content and calls."""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from chat_templates import GLM_47, KIMI_K2
from hypothesis import given
from hypothesis import strategies as st

from perilune.text.chat import ChatTemplate
from perilune.text.events import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallEnd, ToolCallStart
from perilune.text.parser import OutputParser, default_parsers
from perilune.text.reasoning import REASONING_PARSERS
from perilune.text.tokenizer import Tokenizer
from perilune.text.toolcalls import TOOL_PARSERS

SCHEMAS: dict[str, dict[str, Any]] = {
    "f": {
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "integer"},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "maybe": {"type": ["string", "null"]},
            "flag": {"type": "boolean"},
            "items": {"$ref": "#/$defs/items"},
            "unit": {"enum": ["c", "f"]},
        },
        "$defs": {"items": {"type": "array"}},
    },
}

SB, SE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CB, AB, CE = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def kimi_call(call_id: str, arguments: str) -> str:
    return f"{CB}{call_id}{AB}{arguments}{CE}"


def glm_call(name: str, *pairs: tuple[str, str], newline: str = "") -> str:
    body = "".join(f"<arg_key>{k}</arg_key>{newline}<arg_value>{v}</arg_value>{newline}" for k, v in pairs)
    return f"<tool_call>{name}{newline}{body}</tool_call>"


def call(index: int, name: str, arguments: str, call_id: str | None = None) -> list[Event]:
    start = ToolCallStart(index, call_id or f"id{index}", name)
    return [start, ToolCallArguments(index, arguments), ToolCallEnd(index)]


R, C = ReasoningDelta, ContentDelta

# (format, starts in reasoning, answer, events)
SAMPLES: dict[str, tuple[str, bool, str, list[Event]]] = {
    "kimi plain": ("kimi", False, "Hello, wörld 😀.\n", [C("Hello, wörld 😀.\n")]),
    "kimi empty": ("kimi", False, "", []),
    "kimi only spaces": ("kimi", False, " \n", [C(" \n")]),
    "kimi thinking": ("kimi", False, "<think>\nhm, 中\n</think>\n\nanswer", [R("hm, 中"), C("answer")]),
    "kimi thinking opened by the prompt": ("kimi", True, "hm</think>answer", [R("hm"), C("answer")]),
    "kimi thinking opened twice": ("kimi", True, "\n<think>hm</think>answer", [R("hm"), C("answer")]),
    "kimi thinking cut off": ("kimi", True, "hm, so", [R("hm, so")]),
    "kimi thinking cut off in the marker": ("kimi", True, "hm</thi", [R("hm</thi")]),
    "kimi empty thinking": ("kimi", False, "<think></think>answer", [C("answer")]),
    "kimi leaked end of thinking": ("kimi", False, "</think>answer", [C("answer")]),
    "kimi markers named in the answer": ("kimi", False, "Use <think> and </think>.", [C("Use <think> and </think>.")]),
    "kimi marker named inside thinking": ("kimi", True, "a <think> b</think>c", [R("a <think> b"), C("c")]),
    "kimi one call": (
        "kimi",
        False,
        "Let me look.\n" + SB + kimi_call("functions.f:0", '{"s": "Zoë 😀"}') + SE,
        [C("Let me look."), *call(0, "f", '{"s": "Zoë 😀"}', "functions.f:0")],
    ),
    "kimi two calls, spaced": (
        "kimi",
        False,
        f"{SB}\n" + kimi_call(" functions.f:3 ", ' {"n": 1} ') + f"\n{kimi_call('functions.g.h:4', '{}')}\n{SE}\n",
        [*call(0, "f", '{"n": 1}', "functions.f:3"), *call(1, "g.h", "{}", "functions.g.h:4")],
    ),
    "kimi call inside open thinking": (
        "kimi",
        True,
        f"I need f. {SB}{kimi_call('functions.f:0', '{}')}{SE}",
        [R("I need f."), *call(0, "f", "{}", "functions.f:0")],
    ),
    "kimi thinking closed after the call": (
        "kimi",
        True,
        f"x{SB}{kimi_call('functions.f:0', '{}')}{SE}</think>done",
        [R("x"), *call(0, "f", "{}", "functions.f:0"), C("done")],
    ),
    "kimi call without a section": (
        "kimi",
        False,
        f"{kimi_call('functions.f:0', '{}')}{kimi_call('functions.f:1', '{}')}{SE}bye",
        [*call(0, "f", "{}", "functions.f:0"), *call(1, "f", "{}", "functions.f:1"), C("bye")],
    ),
    "kimi section left open": (
        "kimi",
        False,
        f"{SB}{kimi_call('functions.f:0', '{}')}",
        call(0, "f", "{}", "functions.f:0"),
    ),
    "kimi call left open": (
        "kimi",
        False,
        f'{SB}{CB}functions.f:0{AB}{{"s": "ab',
        call(0, "f", '{"s": "ab', "functions.f:0"),
    ),
    "kimi call end missing": (
        "kimi",
        False,
        f"{SB}{CB}functions.f:0{AB}{{}}{CB}functions.g:1{AB}{{}}{SE}",
        [*call(0, "f", "{}", "functions.f:0"), *call(1, "g", "{}", "functions.g:1")],
    ),
    "kimi arguments missing": ("kimi", False, f"{SB}{CB}functions.f:0{CE}{SE}", call(0, "f", "{}", "functions.f:0")),
    "kimi arguments empty": ("kimi", False, f"{CB}f:0{AB} {CE}", call(0, "f", "{}", "f:0")),
    "kimi foreign id": ("kimi", False, f"{SB}{kimi_call('call_a1', '{}')}{SE}", call(0, "call_a1", "{}", "call_a1")),
    "kimi id cut off": ("kimi", False, f"a {SB}{CB}functions.we", [C(f"a {CB}functions.we")]),
    "kimi id missing": ("kimi", False, f'{SB}{CB}{AB}{{"a": 1}}{CE}{SE}', [C(f'{CB}{AB}{{"a": 1}}')]),
    "kimi empty section": ("kimi", False, f"a{SB}{SE}b", [C("ab")]),
    "kimi leaked section end": ("kimi", False, f"answer{SE}{CE}", [C("answer")]),
    "kimi text in the section": (
        "kimi",
        False,
        f"{SB}note {kimi_call('functions.f:0', '{}')}{SE}",
        [C("note"), *call(0, "f", "{}", "functions.f:0")],
    ),
    "kimi text after the section": (
        "kimi",
        False,
        f"{SB}{kimi_call('functions.f:0', '{}')}{SE}\nbye\n",
        [*call(0, "f", "{}", "functions.f:0"), C("bye\n")],
    ),
    "glm plain": ("glm", False, "Hi < there <tool", [C("Hi < there <tool")]),
    "glm thinking": ("glm", True, "hm\n</think>\nanswer", [R("hm"), C("answer")]),
    "glm thinking with its own marker": ("glm", False, "\n<think>hm</think>answer", [R("hm"), C("answer")]),
    "glm call named in thinking": ("glm", True, "no <tool_call> yet</think>ok", [R("no <tool_call> yet"), C("ok")]),
    "glm one call": (
        "glm",
        True,
        "hm</think>Looking.\n" + glm_call("f", ("s", 'a "b"\n\\ 😀'), ("n", "2")),
        [R("hm"), C("Looking."), *call(0, "f", r'{"s": "a \"b\"\n\\ 😀", "n": 2}')],
    ),
    "glm newlines": (
        "glm",
        False,
        "\n" + glm_call("f", ("s", "x"), newline="\n") + "\n" + glm_call("f", newline="\n") + "\n",
        [*call(0, "f", '{"s": "x"}'), *call(1, "f", "{}")],
    ),
    "glm no arguments": ("glm", False, "<tool_call>f</tool_call>", call(0, "f", "{}")),
    "glm types": (
        "glm",
        False,
        glm_call(
            "f", ("s", "5"), ("n", " 5 "), ("either", "5"), ("maybe", "null"), ("flag", "True"), ("items", "[1, 2]"),
            ("unit", "c"), ("other", "1.5"), ("more", "text"),
        ),
        call(
            0, "f", '{"s": "5", "n": 5, "either": 5, "maybe": null, "flag": true, "items": [1, 2], "unit": "c", '
            '"other": 1.5, "more": "text"}',
        ),
    ),
    "glm wrong types": (
        "glm",
        False,
        glm_call("f", ("n", "many"), ("maybe", "12"), ("items", "NaN"), ("flag", "{")),
        call(0, "f", '{"n": "many", "maybe": "12", "items": "NaN", "flag": "{"}'),
    ),
    "glm unknown tool": ("glm", False, glm_call("g", ("a", "1"), ("b", "x")), call(0, "g", '{"a": 1, "b": "x"}')),
    "glm value left open": ("glm", False, "<tool_call>f<arg_key>s</arg_key><arg_value>ab", call(0, "f", '{"s": "ab"}')),
    "glm number left open": ("glm", False, "<tool_call>f<arg_key>n</arg_key><arg_value>1", call(0, "f", '{"n": 1}')),
    "glm value end missing": (
        "glm",
        False,
        "<tool_call>f<arg_key>s</arg_key><arg_value>ab</tool_call>ok",
        [*call(0, "f", '{"s": "ab"}'), C("ok")],
    ),
    "glm value missing": (
        "glm",
        False,
        "<tool_call>f<arg_key>s</arg_key><arg_key>n</arg_key><arg_value>1</arg_value></tool_call>",
        call(0, "f", '{"s": "", "n": 1}'),
    ),
    "glm key end missing": (
        "glm",
        False,
        "<tool_call>f<arg_key>s<arg_value>x</arg_value></tool_call>",
        call(0, "f", '{"s": "x"}'),
    ),
    "glm key left open": ("glm", False, "<tool_call>f<arg_key>s", call(0, "f", '{"s": ""}')),
    "glm call end missing": (
        "glm",
        False,
        f"<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value>{glm_call('f')}",
        [*call(0, "f", '{"n": 1}'), *call(1, "f", "{}")],
    ),
    "glm name cut off": ("glm", False, "a\n<tool_call>get_we", [C("a\n<tool_call>get_we")]),
    "glm other syntax": (
        "glm",
        False,
        '<tool_call>{"name": "f"}</tool_call>',
        [C('<tool_call>{"name": "f"}</tool_call>')],
    ),
    "none": ("none", True, f"<think>a</think>{SB}<tool_call>\n", [C(f"<think>a</think>{SB}<tool_call>\n")]),
}  # fmt: skip


def parser(kind: str, starts_in_reasoning: bool = False) -> OutputParser:
    ids = itertools.count()
    names = {"kimi": ("kimi_k2", "kimi_k2"), "glm": ("glm45", "glm47"), "none": (None, None)}[kind]
    reasoning = REASONING_PARSERS[names[0]] if names[0] else None
    tools = TOOL_PARSERS[names[1]] if names[1] else None
    new_id = lambda: f"id{next(ids)}"  # noqa: E731  # a counter is all it is
    return OutputParser(reasoning, tools, SCHEMAS, starts_in_reasoning=starts_in_reasoning, new_id=new_id)


def parsed(kind: str, inside: bool, pieces: Iterable[str]) -> list[Event]:
    """Events with neighbours of one kind merged, as a client that adds up deltas sees them."""
    machine = parser(kind, inside)
    merged: list[Any] = []
    for event in [e for piece in pieces for e in machine.push(piece)] + machine.finish():
        assert getattr(event, "text", "x"), "an empty delta"
        same = merged and type(merged[-1]) is type(event) and not isinstance(event, ToolCallStart | ToolCallEnd)
        if same and isinstance(event, ReasoningDelta | ContentDelta | ToolCallArguments):
            merged[-1] = dataclasses.replace(event, text=merged[-1].text + event.text)
        else:
            merged.append(event)
    return merged


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_gives_its_events_whole_and_cut_at_every_byte(name: str) -> None:
    kind, inside, answer, events = SAMPLES[name]
    assert parsed(kind, inside, [answer]) == events
    assert parsed(kind, inside, answer) == events  # one character at a time
    data = answer.encode()
    for at in range(len(data) + 1):
        decoder = codecs.getincrementaldecoder("utf-8")()
        assert parsed(kind, inside, [decoder.decode(data[:at]), decoder.decode(data[at:], final=True)]) == events


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.startswith("glm")])
def test_glm_arguments_are_always_a_json_object(name: str) -> None:
    kind, inside, answer, _ = SAMPLES[name]
    for event in parsed(kind, inside, [answer]):
        if isinstance(event, ToolCallArguments):
            assert isinstance(json.loads(event.text), dict)


PIECES = st.sampled_from([
    SB, SE, CB, AB, CE, "<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>",
    "</arg_value>", "functions.f:0", "f", "s", "n", "a1", "b2", "{}", " ", "\n", "<", "|>", "</", "😀",
])  # fmt: skip


@given(pieces=st.lists(PIECES, max_size=14), data=st.data(), inside=st.booleans())
@pytest.mark.parametrize("kind", ["kimi", "glm"])
def test_any_garbage_cut_anywhere_is_the_same_and_loses_no_word(
    kind: str, pieces: list[str], data: st.DataObject, inside: bool
) -> None:
    answer = "".join(pieces)
    whole = parsed(kind, inside, [answer])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    parts = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert parsed(kind, inside, parts) == whole
    assert parsed(kind, inside, answer) == whole
    shown = "".join(f"{getattr(e, 'id', '')} {getattr(e, 'name', '')} {getattr(e, 'text', '')}" for e in whole)
    for word in ("a1", "b2", "😀"):
        assert shown.count(word) >= answer.count(word)


@given(pieces=st.lists(PIECES, max_size=14), inside=st.booleans())
@pytest.mark.parametrize("kind", ["kimi", "glm"])
def test_calls_start_and_end_in_order(kind: str, pieces: list[str], inside: bool) -> None:
    open_call, next_index = None, 0
    for event in parsed(kind, inside, ["".join(pieces)]):
        if isinstance(event, ToolCallStart):
            assert open_call is None
            assert event.index == next_index
            assert event.name
            assert event.id
            open_call, next_index = event.index, next_index + 1
        elif isinstance(event, ToolCallArguments):
            assert event.index == open_call
        elif isinstance(event, ToolCallEnd):
            assert event.index == open_call
            open_call = None
    assert open_call is None


@given(value=st.text(max_size=20).filter(lambda v: "</" not in v))
def test_string_values_arrive_unchanged(value: str) -> None:
    events = parsed("glm", False, [glm_call("f", ("s", value))])
    assert json.loads("".join(e.text for e in events if isinstance(e, ToolCallArguments))) == {"s": value}


def test_text_streams_without_delay_unless_a_marker_may_follow() -> None:
    machine = parser("kimi")
    assert machine.push("Hello <") == [C("Hello")]
    assert machine.push("b> ") == [C(" <b>")]
    assert machine.push("x") == [C(" x")]
    machine.push(f"{SB}{CB}functions.f:0{AB}")
    assert machine.push('{"a": ') == [ToolCallArguments(0, '{"a":')]
    assert machine.push("1") == [ToolCallArguments(0, " 1")]


def test_string_arguments_of_glm_stream_before_they_end() -> None:
    machine = parser("glm")
    machine.push("<tool_call>f<arg_key>s</arg_key>")
    assert machine.push("<arg_value>ab") == [ToolCallArguments(0, "ab")]


def test_calls_without_ids_get_distinct_ones() -> None:
    machine = OutputParser(None, TOOL_PARSERS["glm47"])
    events = machine.push("<tool_call>f</tool_call><tool_call>f</tool_call>")
    ids = {event.id for event in events if isinstance(event, ToolCallStart)}
    assert len(ids) == 2
    assert all(i.startswith("call_") for i in ids)


def test_the_vocabulary_chooses_the_parsers(kimi: Tokenizer, glm: Tokenizer) -> None:
    assert default_parsers("kimi_linear", kimi, None) == ("kimi_k2", "kimi_k2")
    assert default_parsers("deepseek_v3", kimi, None) == ("kimi_k2", "kimi_k2")
    assert default_parsers("glm4_moe_lite", glm, None) == ("glm47", "glm45")
    assert default_parsers("deepseek_v3", glm, None) == (None, None)


def test_prompt_and_parser_agree_on_where_an_answer_starts(kimi: Tokenizer, glm: Tokenizer) -> None:
    messages = [{"role": "user", "content": "x"}]
    thinking = KIMI_K2.replace("message.content -", "'<think></think>' + message.content -")
    assert not ChatTemplate({"default": KIMI_K2}, kimi).render(messages).starts_in_reasoning
    assert ChatTemplate({"default": thinking}, kimi).render(messages).starts_in_reasoning
    assert not ChatTemplate({"default": thinking + "<think></think>"}, kimi).render(messages).starts_in_reasoning
    assert (
        not ChatTemplate({"default": GLM_47.replace("else '<think>'", "else ''")}, glm)
        .render(messages)
        .starts_in_reasoning
    )
    off = ChatTemplate({"default": thinking}, kimi).render(messages, extra={"thinking": False})
    assert not off.starts_in_reasoning
