from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perilune.server.forced import ArgumentsReader, NamedCallReader, forced_grammar
from perilune.text.events import ToolCallArguments, ToolCallEnd, ToolCallStart

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(), JSON, max_size=4)
CUTS = st.lists(st.integers(0, 10_000), max_size=8)
INDENTS = st.sampled_from([None, 0, 2])


def read(reader: Any, text: str, cuts: list[int]) -> tuple[list[str], str, int]:
    """Names started, all arguments, calls ended."""
    at = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    events = [event for a, b in pairwise(at) for event in reader.push(text[a:b])] + reader.finish()
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    arguments = "".join(event.text for event in events if isinstance(event, ToolCallArguments))
    return names, arguments, sum(isinstance(event, ToolCallEnd) for event in events)


@given(arguments=ARGUMENTS, cuts=CUTS, indent=INDENTS, ascii_only=st.booleans())
def test_arguments_pass_through_however_cut(
    arguments: dict[str, Any], cuts: list[int], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    assert read(ArgumentsReader("f"), text, cuts) == (["f"], text, 1)


@given(name=st.text(min_size=1), arguments=ARGUMENTS, cuts=CUTS, indent=INDENTS)
def test_a_named_call_comes_apart_however_cut(
    name: str, arguments: dict[str, Any], cuts: list[int], indent: int | None
) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, indent=indent)
    names, found, ended = read(NamedCallReader(), text, cuts)
    assert names == [name]
    assert json.loads(found) == arguments
    assert ended == 1


def test_an_answer_cut_off_before_the_name_has_no_call() -> None:
    assert read(NamedCallReader(), '{"name": "we', []) == ([], "", 0)


def test_references_inside_parameters_still_reach_their_definitions() -> None:
    point = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    made = json.loads(forced_grammar([{"name": "a", "parameters": point}, {"name": "b"}]).text)
    inner = made["$defs"]["call_0"]
    assert inner["properties"]["x"]["$ref"] == "#/$defs/call_0/$defs/n"
    assert inner["$defs"]["n"] == {"type": "integer"}
    assert made["$defs"]["call_1"] == {"type": "object"}
    assert [call["properties"]["name"]["const"] for call in made["anyOf"]] == ["a", "b"]
