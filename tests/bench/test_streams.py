"""The event-stream parser: the same meaning however bytes are cut, and no token where nothing was said."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.bench.load.client import note
from perilune.bench.load.events import BadStreamError, Delta, EventParser
from perilune.bench.load.record import Record, from_line, to_line


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def chat(finish: str | None = None, **delta: object) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


STREAM = (
    b": a comment\n\n"
    + chat(role="assistant", content="")
    + chat(reasoning_content="let me see")
    + chat(reasoning="again")
    + chat(content=None)
    + chat(content="smørrebrød 🌒 and more")
    + chat(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "{"}}])
    + chat(finish="tool_calls")
    + event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5,
                               "prompt_tokens_details": {"cached_tokens": 3},
                               "completion_tokens_details": {"reasoning_tokens": 2}})
    + b"data: [DONE]\n\n"
)  # fmt: skip


def parsed(pieces: list[bytes]) -> list[Delta]:
    parser = EventParser()
    return [delta for piece in pieces for delta in parser.feed(piece)]


def test_first_tokens_are_told_apart_and_a_role_is_none() -> None:
    record = Record(id=0, intended=0.0)
    for at, delta in enumerate(parsed([STREAM])):
        note(record, delta, float(at))
    assert (record.first_token, record.first_reasoning, record.first_answer) == (1.0, 1.0, 4.0)
    assert record.arrivals == [1.0, 2.0, 4.0, 5.0]
    assert (record.input_tokens, record.output_tokens, record.cached_tokens, record.reasoning_tokens) == (7, 5, 3, 2)
    assert record.finish == "tool_calls"
    assert from_line(to_line(record)) == record


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_means_the_same_wherever_it_is_cut(cuts: list[int], newline: bytes) -> None:
    data = STREAM.replace(b"\n", newline)
    ends = sorted({0, *cuts, len(data)})
    whole = parsed([STREAM])
    assert parsed([data[a:b] for a, b in itertools.pairwise(ends)] + [b"\n"]) == whole
    assert whole[-1].done


def test_a_number_that_json_does_not_have_spoils_nothing() -> None:
    assert parsed([b'data: {"choices": [{"text": "x", "logprobs": NaN}]}\n\n']) == [Delta(answer="x")]


def test_several_data_lines_are_one_event() -> None:
    assert parsed([b'data: {"choices":\ndata: [{"text": "x"}]}\n\n']) == [Delta(answer="x")]


@pytest.mark.parametrize(
    "sent", [b"data: {nonsense\n\n", b"data: [1]\n\n", event(error={"message": "out of memory"}), event(error="gone")]
)
def test_an_error_in_the_middle_is_an_error(sent: bytes) -> None:
    with pytest.raises(BadStreamError):
        parsed([chat(content="a"), sent])
