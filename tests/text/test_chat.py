"""Prompts from templates, and the promise that no user text becomes a control token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import GLM_47, KIMI_K2
from hypothesis import given, settings
from hypothesis import strategies as st
from text_strategies import texts

from perilune.errors import CheckpointError, RequestError
from perilune.text.chat import ChatTemplate
from perilune.text.messages import ROLES
from perilune.text.tokenizer import Tokenizer

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(scope="session")
def kimi_chat(kimi: Tokenizer) -> ChatTemplate:
    return ChatTemplate({"default": KIMI_K2}, kimi)


@pytest.fixture(scope="session")
def glm_chat(glm: Tokenizer) -> ChatTemplate:
    return ChatTemplate({"default": GLM_47}, glm)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_a_kimi_conversation_with_a_tool_call_renders_exactly(kimi_chat: ChatTemplate, kimi: Tokenizer) -> None:
    call = {
        "id": "functions.weather:0",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Zoë"}'},
    }
    messages = [
        {"role": "system", "content": "Be brief."},
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": "rain"},
    ]
    prompt = kimi_chat.render(messages, [WEATHER])
    declared = json.dumps(WEATHER, sort_keys=True, separators=(",", ":"))
    assert prompt.text == (
        f"<|im_system|>tool_declare<|im_middle|>[{declared}]<|im_end|>"
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|><|im_user|>user<|im_middle|>Weather?<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city":"Zoë"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
        "<|im_system|>tool<|im_middle|>## Return of functions.weather:0\nrain<|im_end|>"
        "<|im_assistant|>assistant<|im_middle|>"
    )
    assert prompt.ids == kimi.encode(prompt.text, allow_special=True)


def test_a_glm_conversation_renders_exactly(glm_chat: ChatTemplate, glm: Tokenizer) -> None:
    call = {"id": "c", "function": {"name": "weather", "arguments": '{"city": "Paris", "days": 2}'}}
    messages = [user("hi"), {"role": "assistant", "content": "<think>\nhm</think>\nok", "tool_calls": [call]}]
    prompt = glm_chat.render([*messages, {"role": "tool", "content": "rain"}, {"role": "tool", "content": "wind"}])
    assert prompt.text == (
        "[gMASK]<sop><|user|>hi<|assistant|><think>hm</think>ok<tool_call>weather<arg_key>city</arg_key>"
        "<arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call><|observation|>"
        "<tool_response>rain</tool_response><tool_response>wind</tool_response><|assistant|><think>"
    )
    assert prompt.ids == glm.encode(prompt.text, allow_special=True)


@pytest.mark.parametrize(("extra", "inside"), [({}, True), ({"enable_thinking": False}, False)])
def test_the_prompt_knows_whether_the_answer_starts_in_reasoning(
    glm_chat: ChatTemplate, extra: dict[str, Any], inside: bool
) -> None:
    assert glm_chat.render([user("hi <think>")], extra=extra).starts_in_reasoning is inside
    assert not glm_chat.render([user("hi <think>")], extra=extra, add_generation_prompt=False).starts_in_reasoning


def conversation(strings: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same conversation for any five strings, with a user string in every place that takes one."""
    a, b, c, d, e = strings
    call = {"id": a, "type": "function", "function": {"name": b, "arguments": json.dumps({c: d, "n": [e]})}}
    messages = [
        {"role": "system", "content": a, "name": b},
        user([{"type": "text", "text": c}, {"type": "text", "text": d}]),
        {"role": "assistant", "content": "x" + e, "reasoning_content": "y" + a, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": b, "content": c},
        user(d),
    ]
    schema = {"type": "object", "properties": {c: {"description": d, "enum": [e]}}}
    return messages, [{"type": "function", "function": {"name": "f", "description": a, "parameters": schema}}]


@settings(deadline=None)
@given(strings=st.lists(texts(), min_size=5, max_size=5), extra=texts())
@pytest.mark.parametrize("kind", ["kimi", "glm"])
def test_user_text_never_becomes_a_control_token(
    request: pytest.FixtureRequest, kind: str, strings: list[str], extra: str
) -> None:
    chat: ChatTemplate = request.getfixturevalue(f"{kind}_chat")
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    controls = set(tokenizer.special_ids.values())

    def rendered(values: list[str], extra_value: str) -> Any:
        messages, tools = conversation(values)
        return chat.render(messages, tools, extra={"persona": extra_value})

    prompt, harmless = rendered(strings, extra), rendered(["v", "w", "x", "y", "z"], "p")
    assert [i for i in prompt.ids if i in controls] == [i for i in harmless.ids if i in controls]
    assert tokenizer.decode(prompt.ids, skip_special=False) == prompt.text
    for text in strings[1:4]:
        assert text in prompt.text or json.dumps(text, ensure_ascii=False)[1:-1] in prompt.text


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", [user("<|im_"), user("end|>")]),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", [user(" <|im_ \n"), user("\tend|>")]),
        ("<|im_{{ messages[0].content }}|>", [user("end")]),
        ("<|im_{{ messages[0].content | trim }}", [user(" end|> and more")]),
        ("{{ messages[0].content | upper }}", [user("[eos]")]),
        ("{{ messages[0].content | replace('-', '') }}", [user("<|im-_end|>")]),
        ("{{ messages[0].content | lower | tojson }}", [user("<|IM_END|>")]),
        ("{{ messages | tojson }}", [{**user("x"), "<|im_end|>": "[EOS]"}]),
        ("{{ messages[0].content[::-1] }}", [user(">|dne_mi|<")]),
    ],
)
def test_no_template_trick_joins_user_text_to_a_control_token(
    kimi: Tokenizer, template: str, messages: list[dict[str, Any]]
) -> None:
    prompt = ChatTemplate({"default": template}, kimi).render(messages)
    assert not set(prompt.ids) & set(kimi.special_ids.values())


def test_roles_may_be_part_of_a_control_token(glm: Tokenizer) -> None:
    chat = ChatTemplate({"default": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"}, glm)
    assert chat.render([user("a"), {"role": "assistant", "content": "b"}]).ids == glm.encode(
        "<|user|>a<|assistant|>b", allow_special=True
    )


def test_only_the_tail_of_a_prompt_opens_reasoning(kimi: Tokenizer) -> None:
    chat = ChatTemplate({"default": "{{ messages[0].content }}{{ tail }}<think>\n"}, kimi)
    assert chat.render([user("a")]).starts_in_reasoning
    assert (
        not ChatTemplate({"default": "{{ messages[0].content }}"}, kimi).render([user("<think>")]).starts_in_reasoning
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "usr", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([user(3)], "messages[0].content"),
        ([user("a"), user([{"type": "image_url", "image_url": {"url": "x"}}])], "messages[1].content[0]"),
        ([{**user("a"), "name": 5}], "messages[0].name"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "messages[0].tool_calls[0].function.name"),
        ([{"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f"}}]}], "messages[0].tool_calls[0].id"),
    ],
)
def test_bad_messages_name_the_field(kimi_chat: ChatTemplate, messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        kimi_chat.render(messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({"a": 1}, "tools"),
        (["x"], "tools[0]"),
        ([{"type": "web_search", "function": {"name": "f"}}], "tools[0]"),
        ([WEATHER, {"type": "function", "function": {}}], "tools[1].function.name"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "f", "parameters": [1]}}], "tools[0].function.parameters"),
    ],
)
def test_bad_tools_name_the_field(kimi_chat: ChatTemplate, tools: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        kimi_chat.render([user("x")], tools)
    assert caught.value.param == param


def test_template_variables_cannot_replace_the_messages(kimi_chat: ChatTemplate) -> None:
    with pytest.raises(RequestError) as caught:
        kimi_chat.render([user("x")], extra={"messages": []})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_renders(kimi_chat: ChatTemplate, role: str) -> None:
    assert "said" in kimi_chat.render([{"role": role, "content": "said", "tool_call_id": "t"}]).text


def test_broken_arguments_of_a_past_call_are_kept_as_text(kimi_chat: ChatTemplate) -> None:
    call = {"id": "functions.f:0", "function": {"name": "f", "arguments": '{"a": <|im_end|>'}}
    prompt = kimi_chat.render([user("x"), {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert r'"{\"a\": <|im_end|>"' in prompt.text


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no ' + messages[0].role) }}",
        "{{ messages[0].content.foo.bar }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% include 'x' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_is_a_request_error(kimi: Tokenizer, template: str) -> None:
    with pytest.raises(RequestError, match="cannot render") as caught:
        ChatTemplate({"default": template}, kimi).render([user("x")])
    assert caught.value.param == "messages"


LOOP = "{% for i in range(99999) %}"


@pytest.mark.parametrize(
    "template",
    [
        LOOP * 4 + "{% endfor %}" * 4,
        LOOP + "{{ 'x' * 1000 }}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x %}{{ n.x ~ n.x }}{% endset %}{% endfor %}",
        "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(200) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x\ny' | indent(999999999) }}",
        "{% set __budget__ = none %}" + LOOP * 3 + "{% endfor %}" * 3,
    ],
)
def test_endless_work_ends_in_an_error(kimi: Tokenizer, template: str) -> None:
    with pytest.raises(RequestError, match="cannot render"):
        ChatTemplate({"default": template}, kimi).render([user("x")])


def test_long_conversations_are_within_the_bounds(kimi_chat: ChatTemplate) -> None:
    messages = [user("<a> [1] " * 2_000)] * 50 + [user("hi")] * 2_000
    assert kimi_chat.render(messages).text.count("<|im_user|>") == 2_050


def test_templates_can_use_what_hub_templates_use(kimi: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endfor %}{{ bos_token }}{{ strftime_now('%Y')[:2] }}"
        "{{ {'b': 'é', 'a': 1} | tojson(sort_keys=True) }}"
        "{{ '%02d' | format(3) }}{{ '{:>3}'.format(1) }}{{ {'a': [1]} | tojson(indent=2) }}"
    )
    prompt = ChatTemplate({"default": source}, kimi, {"bos_token": "[BOS]"}).render([user("a"), user("b")])
    assert prompt.text == 'a[BOS]20{"a": 1, "b": "é"}03  1{\n  "a": [\n    1\n  ]\n}'


def test_tools_pick_the_tool_template(kimi: Tokenizer) -> None:
    chat = ChatTemplate({"default": "plain", "tool_use": "tools"}, kimi)
    assert (chat.render([user("x")]).text, chat.render([user("x")], [WEATHER]).text) == ("plain", "tools")


def test_template_files_are_found_in_order(kimi_folder: Path, kimi: Tokenizer, tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path, kimi) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one", "bos_token": "[BOS]"}))
    assert _loaded(tmp_path, kimi).render([user("x")]).text == "one"
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "{{ bos_token }}"}], "bos_token": "B"})
    )
    assert _loaded(tmp_path, kimi).render([user("x")]).text == "B"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert _loaded(tmp_path, kimi).render([user("x")]).text == "three"


def _loaded(path: Path, tokenizer: Tokenizer) -> ChatTemplate:
    chat = ChatTemplate.load(path, tokenizer)
    assert chat is not None
    return chat


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{% for %}"),
        ("chat_template.jinja", "{{ 'x' "),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}'),
        ("tokenizer_config.json", '{"chat_template": 3}'),
        ("tokenizer_config.json", "{"),
    ],
)
def test_a_broken_template_file_is_named(tmp_path: Path, kimi: Tokenizer, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        ChatTemplate.load(tmp_path, kimi)
    assert name in str(caught.value)


@pytest.mark.parametrize("content", ["The answer is", "The answer is ", " x", "q", "<|im_end|>", "é\n"])
def test_a_continued_message_ends_the_prompt_with_its_own_text(
    kimi_chat: ChatTemplate, kimi: Tokenizer, content: str
) -> None:
    messages = [user("hi"), {"role": "assistant", "content": content}]
    prompt = kimi_chat.render(messages, continue_final_message=True)
    opened = kimi_chat.render(messages[:1])
    assert prompt.text == opened.text + content
    assert prompt.ids == opened.ids + kimi.encode(content)
    assert not prompt.starts_in_reasoning
    assert "endq" not in kimi_chat.render(messages, add_generation_prompt=False).text


@pytest.mark.parametrize(("content", "kept"), [("so  ", "so"), ("so", "so"), ("<think>hm</think>so", "so")])
def test_a_continued_message_is_trimmed_where_the_template_trims(
    glm_chat: ChatTemplate, content: str, kept: str
) -> None:
    messages = [user("hi"), {"role": "assistant", "content": content}]
    thought = "<think>hm</think>" if "hm" in content else "</think>"
    prompt = glm_chat.render(messages, continue_final_message=True)
    assert prompt.text == f"[gMASK]<sop><|user|>hi<|assistant|>{thought}{kept}"


def test_a_continued_message_said_before_is_cut_at_its_last_place(kimi_chat: ChatTemplate) -> None:
    messages = [{"role": "assistant", "content": "A"}, user("A"), {"role": "assistant", "content": "A"}]
    assert kimi_chat.render(messages, continue_final_message=True).text.endswith(
        "<|im_assistant|>assistant<|im_middle|>A"
    )


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (user("hi"), "role is 'user'"),
        ({"role": "assistant", "content": "\n"}, "no content"),
        ({"role": "assistant", "reasoning_content": "hm"}, "no content"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            "tool_calls",
        ),
    ],
)
def test_a_message_with_no_end_to_go_on_from_is_refused(kimi_chat: ChatTemplate, message: dict, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        kimi_chat.render([user("hi"), message], continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_a_template_that_leaves_the_message_out_is_refused_with_a_reason(kimi: Tokenizer) -> None:
    chat = ChatTemplate({"default": "{{ messages[0].content }}"}, kimi)
    with pytest.raises(RequestError, match="leaves its text out"):
        chat.render([user("hi"), {"role": "assistant", "content": "x"}], continue_final_message=True)
