"""The openai Python client against a real server with the real engine."""

from __future__ import annotations

import json

import openai as sdk
import pytest
from live import CONTEXT, MODEL
from openai import OpenAI

ASK = [{"role": "user", "content": "What is a page?"}]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "bright": {"type": "boolean"}},
    "required": ["colour", "bright"],
    "additionalProperties": False,
}


def tool(name: str, schema: dict) -> dict:
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": schema}}


def test_models_lists_the_served_name_and_retrieves_it(openai: OpenAI) -> None:
    listed = openai.models.list().data
    assert [model.id for model in listed] == [MODEL]
    assert openai.models.retrieve(MODEL).max_model_len == CONTEXT


def test_unknown_model_is_404_and_names_the_nearest(openai: OpenAI) -> None:
    with pytest.raises(sdk.NotFoundError, match="Did you mean 'tiny'") as caught:
        openai.chat.completions.create(model="tinny", messages=ASK, max_tokens=1)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(sdk.NotFoundError):
        openai.models.retrieve("moonshotai/other")


def test_chat_counts_its_tokens_and_says_why_it_ended(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream_is_the_whole_answer_in_pieces_with_usage_last(openai: OpenAI) -> None:
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 12, "temperature": 0}
    whole = openai.chat.completions.create(**asked)
    chunks = list(openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_choices_come_with_their_index_and_repeat_under_a_seed(openai: OpenAI) -> None:
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 6, "n": 3, "seed": 7}
    first, again = (openai.chat.completions.create(**asked) for _ in range(2))
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    streamed = ["", "", ""]
    for chunk in openai.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_a_stop_string_is_cut_off(openai: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "The", "max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}
    text = openai.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    choice = openai.completions.create(**asked, stop=[stop]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(stop)]
    assert choice.stop_reason == stop


def test_chat_logprobs_cover_every_token(openai: OpenAI) -> None:
    asked = {"model": MODEL, "messages": ASK, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    asked["extra_body"] = {"ignore_eos": True}
    answer = openai.chat.completions.create(**asked)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 6
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)  # greedy takes the best
        assert entry.logprob <= 0
    chunks = openai.chat.completions.create(**asked, stream=True)
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [e.token for e in streamed] == [e.token for e in entries]


def test_top_logprobs_without_logprobs_is_refused(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="needs logprobs") as caught:
        openai.chat.completions.create(model=MODEL, messages=ASK, top_logprobs=2)
    assert caught.value.param == "top_logprobs"


def test_completions_take_text_and_ids_alone_and_in_lists(openai: OpenAI) -> None:
    client = openai.with_options(max_retries=0)
    ids = client.post("/../tokenize", body={"prompt": "One two"}, cast_to=object)["tokens"]
    asked = {"model": MODEL, "max_tokens": 4, "temperature": 0}
    alone = openai.completions.create(prompt="One two", **asked).choices[0].text
    assert openai.completions.create(prompt=ids, **asked).choices[0].text == alone
    both = openai.completions.create(prompt=["One two", "Three"], **asked)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == alone
    lists = openai.completions.create(prompt=[ids, ids], **asked)
    assert [choice.text for choice in lists.choices] == [alone, alone]
    assert lists.usage.prompt_tokens == 2 * len(ids)


def test_completions_echo_puts_the_prompt_first_streamed_or_not(openai: OpenAI) -> None:
    asked = {"model": MODEL, "prompt": ["One two", "Three"], "max_tokens": 3, "temperature": 0, "echo": True, "n": 2}
    whole = openai.completions.create(**asked)
    assert [choice.text.startswith(prompt) for choice, prompt in zip(
        whole.choices, ["One two", "One two", "Three", "Three"], strict=True
    )] == [True] * 4  # fmt: skip
    streamed = dict.fromkeys(range(4), "")
    for chunk in openai.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert list(streamed.values()) == [choice.text for choice in whole.choices]


def test_completions_logprobs_line_up_with_the_text(openai: OpenAI) -> None:
    answer = openai.completions.create(
        model=MODEL, prompt="One", max_tokens=5, temperature=0, logprobs=2, extra_body={"return_token_ids": True}
    )
    choice = answer.choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(choice.token_ids)
    assert found.text_offset[0] == 0
    assert all(len(top) <= 2 for top in found.top_logprobs)


@pytest.mark.parametrize(
    ("field", "value"), [("suffix", "end"), ("best_of", 3)], ids=["suffix", "best_of"]
)  # fmt: skip
def test_completions_refuse_what_is_not_supported(openai: OpenAI, field: str, value: object) -> None:
    with pytest.raises(sdk.BadRequestError, match=f"{field} is not supported") as caught:
        openai.completions.create(model=MODEL, prompt="One", **{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_is_obeyed(openai: OpenAI, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}}
    asked = {"model": MODEL, "messages": ASK, "response_format": form, "max_tokens": 100, "seed": 1}
    if stream:
        chunks = openai.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = openai.chat.completions.create(**asked).choices[0].message.content
    value = json.loads(text)
    assert value["colour"] in ("red", "green")
    assert isinstance(value["bright"], bool)


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_regex": "[ab]{3}"},
        {"structured_outputs": {"regex": "[ab]{3}"}},
        {"guided_grammar": "root ::= [ab] [ab] [ab]"},
    ],
    ids=["guided_regex", "structured_outputs", "guided_grammar"],
)
def test_vllms_constraints_are_obeyed(openai: OpenAI, extra: dict) -> None:
    answer = openai.completions.create(model=MODEL, prompt="x", max_tokens=16, extra_body=extra)
    assert len(answer.choices[0].text) == 3
    assert set(answer.choices[0].text) <= {"a", "b"}


@pytest.mark.parametrize("choice", ["a", 'say "no"', "back\\slash", "zwölf 😀", "line\nbreak", "tab\t"])
def test_a_choice_is_one_of_the_given_texts(openai: OpenAI, choice: str) -> None:
    for extra in ({"guided_choice": [choice]}, {"structured_outputs": {"choice": [choice]}}):
        answer = openai.completions.create(model=MODEL, prompt="x", max_tokens=32, extra_body=extra)
        assert answer.choices[0].text == choice


def test_two_constraints_at_once_are_refused(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="More than one constraint"):
        openai.completions.create(model=MODEL, prompt="x", extra_body={"guided_regex": "a", "guided_json": {}})


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_called_with_arguments_of_its_schema(openai: OpenAI, stream: bool) -> None:
    asked = {
        "model": MODEL, "messages": ASK, "max_tokens": 100, "seed": 3,
        "tools": [tool("other", {}), tool("paint", COLOUR)],
        "tool_choice": {"type": "function", "function": {"name": "paint"}},
    }  # fmt: skip
    if stream:
        deltas = [c.choices[0] for c in openai.chat.completions.create(**asked, stream=True)]
        parts = [part for choice in deltas for part in choice.delta.tool_calls or []]
        name, finish = parts[0].function.name, deltas[-1].finish_reason
        arguments = "".join(part.function.arguments or "" for part in parts)
    else:
        choice = openai.chat.completions.create(**asked).choices[0]
        (call,) = choice.message.tool_calls
        name, arguments, finish = call.function.name, call.function.arguments, choice.finish_reason
        assert choice.message.content is None
    assert (name, finish) == ("paint", "tool_calls")
    assert json.loads(arguments)["colour"] in ("red", "green")


def test_a_required_call_chooses_one_of_several_tools(openai: OpenAI) -> None:
    switch = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    tools = [tool("switch", {**switch, "additionalProperties": False}), tool("paint", COLOUR)]
    answer = openai.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=100, seed=5, tools=tools, tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls
    wanted = {"switch": {"on"}, "paint": {"colour", "bright"}}
    assert set(json.loads(call.function.arguments)) == wanted[call.function.name]


def test_a_tool_choice_that_names_no_tool_is_refused(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="Did you mean 'paint'"):
        openai.chat.completions.create(
            model=MODEL, messages=ASK, tools=[tool("paint", COLOUR)],
            tool_choice={"type": "function", "function": {"name": "pain"}},
        )  # fmt: skip


def test_a_responses_answer_has_one_message_and_its_usage(openai: OpenAI) -> None:
    answer = openai.responses.create(
        model=MODEL, input="Hello", instructions="Be short.", max_output_tokens=5, temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert [item.type for item in answer.output] == ["message"]
    assert answer.output_text
    assert answer.usage.output_tokens == 5


def test_a_responses_stream_sends_typed_events_that_build_the_answer(openai: OpenAI) -> None:
    asked = {"model": MODEL, "input": [{"role": "user", "content": "Hello"}], "max_output_tokens": 8, "temperature": 0}
    whole = openai.responses.create(**asked)
    events = list(openai.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text


def test_a_responses_text_has_the_log_probabilities_of_its_tokens(openai: OpenAI) -> None:
    asked = {"model": MODEL, "input": "What is a page?", "max_output_tokens": 8, "temperature": 0, "top_logprobs": 2}
    asked |= {"include": ["message.output_text.logprobs"]}
    whole = openai.responses.create(**asked)
    [message] = whole.output
    [part] = message.content
    assert whole.top_logprobs == 2
    assert bytes(byte for entry in part.logprobs for byte in entry.bytes).decode() == part.text
    for entry in part.logprobs:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
    events = list(openai.responses.create(**asked, stream=True))
    deltas = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in deltas] == [entry.token for entry in part.logprobs]
    done = {event.type: event for event in events}
    assert done["response.output_text.done"].logprobs[0].logprob == part.logprobs[0].logprob
    assert done["response.content_part.added"].part.logprobs == []
    assert events[-1].response.output[0].content[0].logprobs == part.logprobs
    assert openai.responses.create(**{**asked, "include": [], "top_logprobs": 0}).output[0].content[0].logprobs == []


def test_responses_top_logprobs_without_asking_for_logprobs_is_refused(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match=r"message\.output_text\.logprobs") as caught:
        openai.responses.create(model=MODEL, input="Hello", top_logprobs=2)
    assert caught.value.param == "top_logprobs"


def test_a_final_message_that_is_continued_goes_on_where_it_was_cut(openai: OpenAI) -> None:
    asked = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    begun = [*ASK, {"role": "assistant", "content": "A page is"}]
    chat = openai.chat.completions.create(messages=begun, **asked, extra_body=extra | {"return_token_ids": True})
    ids = chat.prompt_token_ids
    assert openai.post("/../tokenize", body={"messages": begun, **extra}, cast_to=object)["tokens"] == ids
    text = openai.post("/../detokenize", body={"tokens": ids}, cast_to=object)["prompt"]
    assert text.endswith("A page is")
    plain = openai.completions.create(prompt=ids, **asked)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_the_clients_own_response_stream_helper_accepts_the_events(openai: OpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "colour", "schema": COLOUR}}
    with openai.responses.stream(model=MODEL, input="Hello", text=form, max_output_tokens=100) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.status == "completed"
    assert json.loads(final.output_text)["colour"] in ("red", "green")


def test_a_responses_function_call_comes_back_in_the_next_input(openai: OpenAI) -> None:
    flat = {"type": "function", "name": "paint", "parameters": COLOUR, "strict": True}
    choice = {"type": "function", "name": "paint"}
    asked = {"model": MODEL, "tools": [flat], "tool_choice": choice, "max_output_tokens": 100}
    events = list(openai.responses.create(input="Paint.", stream=True, **asked))
    (call,) = events[-1].response.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["colour"] in ("red", "green")
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    history = [
        {"role": "user", "content": "Paint."},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "done"},
    ]
    answer = openai.responses.create(model=MODEL, input=history, max_output_tokens=4)
    assert answer.output


def test_previous_response_id_is_refused_with_the_way_out(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="Send the whole conversation") as caught:
        openai.responses.create(model=MODEL, input="Hello", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


@pytest.mark.parametrize(
    ("extra", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"n": 1000}, "n", "less than or equal to 128"),
        ({"stop": [""]}, "stop", "empty"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", "outside the vocabulary"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "token ids"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "king"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
         "messages[0].content[0]", "Only text is served"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages.0", "Only a message"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
         "response_format", "nonsense"),
        ({"guided_regex": "("}, "response_format", "parenthesis"),
        ({"continue_final_message": True}, "continue_final_message", "role is 'user'"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "exclude"),
        ({"messages": [*ASK, {"role": "assistant", "content": " "}], "continue_final_message": True},
         "continue_final_message", "no content"),
        ({"messages": [*ASK, {"role": "assistant", "content": "A"}], "continue_final_message": True,
          "tools": [tool("paint", COLOUR)], "tool_choice": "required"}, "tool_choice", "is to be continued"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else None,
)  # fmt: skip
def test_a_bad_chat_field_is_a_400_that_names_it(openai: OpenAI, extra: dict, param: str, message: str) -> None:
    with pytest.raises(sdk.BadRequestError, match=message) as caught:
        openai.chat.completions.create(**{"model": MODEL, "messages": ASK, "extra_body": extra})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_longer_than_the_context_says_so(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match=f"context is {CONTEXT}") as caught:
        openai.completions.create(model=MODEL, prompt=[1] * (CONTEXT + 1), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


def test_a_token_id_outside_the_vocabulary_is_refused(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="outside the vocabulary"):
        openai.completions.create(model=MODEL, prompt=[2**31 - 1], max_tokens=1)
