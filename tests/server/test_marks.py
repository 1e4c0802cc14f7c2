"""`cache_control`: the place of a mark is where the marked text ends, in the tokens every continuation shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.builtin import model_path
from perilune.errors import RequestError
from perilune.server.marks import FIELD, Mark, place_marks, take_marks
from perilune.server.responses_body import ResponsesBody
from perilune.text.chat import ChatTemplate, Prompt
from perilune.text.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(model_path())
assert TOKENIZER is not None
BUILTIN = ChatTemplate.load(model_path(), TOKENIZER)
assert BUILTIN is not None
MARK = {"type": "ephemeral"}
TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": {}}, **more}


def placed(
    template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any] = ()
) -> tuple[Prompt, list[int | None]]:
    def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Prompt:
        return template.render(messages, tools)

    unmarked = take_marks(messages, tools)
    prompt = render(unmarked.messages, unmarked.tools)
    return prompt, place_marks(unmarked, prompt, render)


def before(prompt: Prompt, place: int | None) -> str:
    assert place is not None
    return TOKENIZER.decode(prompt.ids[:place], skip_special=False)


@pytest.mark.parametrize("template", [BUILTIN, ChatTemplate({"default": TURNS}, TOKENIZER)], ids=["builtin", "plain"])
def test_a_mark_lies_where_the_marked_text_ends(template: ChatTemplate) -> None:
    system, question = "You are careful, and brief.", "What is a page?"
    parts = [
        {"type": "text", "text": "First."},
        {"type": "text", "text": "Second.", FIELD: MARK},
        {"type": "text", "text": " Third"},
    ]
    messages = [message("system", system, **{FIELD: MARK}), message("user", parts), message("user", question)]
    prompt, (first, second) = placed(template, messages)
    assert before(prompt, first).endswith(system)
    assert before(prompt, second).endswith("First.Second.")
    prompt, (last,) = placed(template, [*messages[1:1], message("user", question, **{FIELD: {**MARK, "ttl": "1h"}})])
    assert before(prompt, last).endswith(question)


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_every_continuation_shares_the_tokens_before_a_mark(marked: str, one: str, other: str) -> None:
    prompts = [
        placed(BUILTIN, [message("system", marked, **{FIELD: MARK}), message("user", tail)]) for tail in (one, other)
    ]
    (first, (place,)), (second, (same,)) = prompts
    assert place is not None
    assert place == same
    assert first.ids[:place] == second.ids[:place]
    text, whole = before(first, place), BUILTIN.render([message("system", marked)], add_generation_prompt=False).text
    assert whole.startswith(text.rstrip("\ufffd"))
    # at most what merges with white space at the end is left out
    assert len(text) >= whole.index(marked.rstrip()) + len(marked.rstrip()) - 1 if marked.strip() in whole else True


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_a_mark_on_a_tool_covers_it_and_the_tools_before(marked: int) -> None:
    tools = [tool(f"tool_{i}", **({FIELD: MARK} if i == marked else {})) for i in range(3)]
    template = ChatTemplate({"default": TOOLS + TURNS}, TOKENIZER)
    prompt, (place,) = placed(template, [message("user", "x")], tools)
    text = before(prompt, place)
    assert f"tool_{marked}" in text
    assert f"tool_{marked + 1}" not in text
    assert text.count('"type": "function"') == marked + 1
    inside = tool("tool_0")
    inside["function"][FIELD] = MARK
    assert placed(template, [message("user", "x")], [inside])[1] != [None]


def test_marks_never_reach_the_template() -> None:
    template = ChatTemplate({"default": "{{ messages | tojson }}" + TOOLS}, TOKENIZER)
    parts = [{"type": "text", "text": "a", FIELD: MARK}]
    prompt, _ = placed(template, [message("user", parts, **{FIELD: None})], [tool("t", **{FIELD: MARK})])
    assert FIELD not in prompt.text


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ messages[0].content | length }}" + TURNS,
        "{% if messages[0].content | length > 5 %}{{ raise_exception('too long') }}{% endif %}" + TURNS,
    ],
    ids=["unwritten", "counted", "refused"],
)
def test_a_mark_the_template_leaves_no_place_for_says_so(source: str) -> None:
    _, places = placed(ChatTemplate({"default": source}, TOKENIZER), [message("user", "abcde", **{FIELD: MARK})])
    assert places == [None]


def test_reasoning_a_template_drops_later_does_not_move_a_mark() -> None:
    """Rendered alone, the marked answer would keep its reasoning."""
    source = "{% for m in messages %}{% if loop.last %}{{ m.reasoning_content }}{% endif %}{{ m.content }};{% endfor %}"
    answer = message("assistant", "forty-two", reasoning_content="long thoughts", **{FIELD: MARK})
    prompt, (place,) = placed(
        ChatTemplate({"default": source}, TOKENIZER), [message("user", "q"), answer, message("user", "x")]
    )
    assert before(prompt, place) == "q;forty-two"


@pytest.mark.parametrize(
    "control", [{"type": "forever"}, {}, "ephemeral", {"type": "ephemeral", "ttl": "2h"}, {"type": "ephemeral", "x": 1}]
)
def test_a_mark_of_another_form_is_refused_by_name(control: Any) -> None:
    with pytest.raises(RequestError) as refused:
        take_marks([message("user", [{"type": "text", "text": "a", FIELD: control}])], [])
    assert refused.value.param == "messages[0].content[0].cache_control"


def test_more_marks_than_are_kept_are_refused() -> None:
    marked = [message("user", "a", **{FIELD: MARK})] * 5
    assert len(take_marks(marked[:4], []).marks) == 4
    with pytest.raises(RequestError, match="At most 4"):
        take_marks(marked, [])


def test_marks_of_a_responses_request_lie_on_the_same_messages() -> None:
    body = ResponsesBody.model_validate(
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a", FIELD: MARK}]},
                {"type": "function_call", "call_id": "1", "name": "t", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "b", FIELD: MARK},
                {"role": "user", "content": "c", FIELD: MARK},
            ],
            "tools": [{"type": "function", "name": "t", FIELD: MARK}],
        }
    )
    said = body.conversation()
    assert take_marks(said.messages, said.tools).marks == (
        Mark(tool=0), Mark(message=0, part=0), Mark(message=2), Mark(message=3)
    )  # fmt: skip
