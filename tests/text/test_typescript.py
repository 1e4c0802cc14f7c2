"""Tools in TypeScript, as Kimi-K2.5's own tokenizer writes them, and the promise that they hold no control token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_strategies import texts

from perilune.text.chat import ChatTemplate
from perilune.text.tokenizer import Tokenizer
from perilune.text.typescript import declarations

TEMPLATE = "{%- if tools_ts_str -%}{{ tools_ts_str }}{%- else -%}{{ tools | tojson }}{%- endif -%}"
ASK = [{"role": "user", "content": "x"}]


def tool(parameters: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "parameters": parameters, **fields}}


def body(parameters: Any, **fields: Any) -> str:
    """What stands between the braces of the namespace."""
    text = declarations([tool(parameters, **fields)])
    assert text is not None
    return text.removeprefix("# Tools\n\n## functions\nnamespace functions {\n").removesuffix("\n}\n")


def of(schema: Any) -> str:
    """The type of one required property."""
    return body({"properties": {"x": schema}, "required": ["x"]}).partition("x: ")[2].removesuffix("\n}) => any;")


def test_a_whole_declaration() -> None:
    parameters = {
        "additionalProperties": False,
        "properties": {
            "city": {"description": "Where.\n\nA name.", "minLength": 1, "pattern": "^[A-Z]", "type": "string"},
            "days": {"default": 3, "maximum": 9, "type": "integer"},
            "units": {"items": {"description": "One.", "enum": ["C", "F"]}, "maxItems": 2, "type": "array"},
        },
        "required": ["units", "city"],
        "type": "object",
    }
    tools = [tool(parameters, description="Tells the\nweather."), {"type": "function", "function": {"name": "now"}}]
    assert (
        declarations(tools)
        == """\
# Tools

## functions
namespace functions {
// Tells the
// weather.
type look = (_: {
  // Where.

  // A name.
  // minLength: 1, pattern: ^[A-Z]
  city: string,
  // maxItems: 2
  units: Array<
    // One.
    "C" | "F"
  >,
  // maximum: 9
  // Default: 3
  days?: number,
  [k: string]: never
}) => any;
type now = (_: {}) => any;
}
"""
    )


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "boolean"}, "boolean"),
        (True, "any"),
        (False, "null"),
        ({}, "any"),
        ({"type": ["string", "integer", "object", "array", "null"]}, "string | number | {} | Array<any> | null"),
        ({"anyOf": [{"type": "integer"}, {"enum": ["a", None]}]}, 'number | "a" | None'),
        ({"type": "array"}, "Array<any>"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, "Array<Array<number>>"),
        ({"type": "object"}, "{}"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "{\n    [k: string]: string\n  }"),
        ({"enum": [1, 2], "type": ["null", "integer"]}, "1 | 2"),
    ],
)
def test_every_kind_of_type(schema: Any, written: str) -> None:
    assert of(schema) == written


def test_definitions_and_recursion_become_interfaces() -> None:
    node = {"type": "object", "description": "A node.", "properties": {"next": {"$ref": "#/$defs/node"}}}
    assert body({"$defs": {"node": node}, "properties": {"first": {"$ref": "#/$defs/node"}}}) == (
        "// A node.\ninterface node {\n  next?: node\n}\ntype look = (_: {\n  first?: node\n}) => any;"
    )
    tree = {"properties": {"left": {"$ref": "#"}, "value": {"type": "number"}}, "required": ["value"]}
    assert body(tree) == (
        "interface parameters {\n  left?: parameters,\n  value: number\n}\ntype look = (_: parameters) => any;"
    )


@pytest.mark.parametrize(("default", "shown"), [("é", '"é"'), (True, "True"), (0, "0"), ([1], "[1]"), ({}, "{}")])
def test_a_default_is_named(default: Any, shown: str) -> None:
    assert f"  // Default: {shown}\n  x?: string" in body({"properties": {"x": {"type": "string", "default": default}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"description": "no type"},
        {"$ref": "#/definitions/old"},
        {"$ref": "#/$defs/missing"},
        {"type": ["string", "strange"]},
        {"enum": ["a"], "type": "integer"},
        {"enum": ["a"], "type": ["string", "integer"]},
        {"type": "object", "properties": None},
        {"type": "string", "description": 5},
        "string",
        None,
    ],
)
def test_a_schema_without_a_form_leaves_the_template_its_json(kimi: Tokenizer, schema: Any) -> None:
    tools = [tool({"properties": {"x": schema}})]
    assert declarations(tools) is None
    assert ChatTemplate({"default": TEMPLATE}, kimi).render(ASK, tools).text.startswith('[{"function":')


def test_a_schema_too_deep_to_walk_leaves_the_template_its_json() -> None:
    schema: dict[str, Any] = {}
    for _ in range(10_000):
        schema = {"type": "array", "items": schema}
    assert declarations([tool({"properties": {"x": schema}})]) is None


def test_only_a_template_that_asks_gets_typescript_and_keys_are_sorted_for_it(kimi: Tokenizer) -> None:
    tools = [
        tool(
            {
                "type": "object",
                "properties": {"b": {"type": "string"}, "a": {"type": "string", "default": {"z": 1, "y": 2}}},
            }
        )
    ]
    written = ChatTemplate({"default": TEMPLATE}, kimi).render(ASK, tools).text
    assert written == (
        '# Tools\n\n## functions\nnamespace functions {\ntype look = (_: {\n  // Default: {"y": 2, "z": 1}\n'
        "  a?: string,\n  b?: string\n}) => any;\n}\n"
    )
    assert ChatTemplate({"default": "{{ tools | tojson }}"}, kimi).render(ASK, tools).text.startswith("[{")
    assert ChatTemplate({"default": TEMPLATE}, kimi).render(ASK).text == "null"
    own = ChatTemplate({"default": TEMPLATE}, kimi).render(ASK, tools, extra={"tools_ts_str": "mine"})
    assert own.text == "mine"


def test_no_type_name_completes_a_control_token_that_our_own_brackets_begin(kimi: Tokenizer) -> None:
    tools = [tool({"properties": {"x": {"type": "array", "items": {"type": "|im_end|"}}}})]
    prompt = ChatTemplate({"default": TEMPLATE}, kimi).render(ASK, tools)
    assert "Array<|im_end|>" in prompt.text
    assert not set(prompt.ids) & set(kimi.special_ids.values())


@given(description=texts(), name=texts(), kind=texts(), value=texts())
def test_no_text_of_a_tool_becomes_a_control_token(
    kimi: Tokenizer, description: str, name: str, kind: str, value: str
) -> None:
    schema = {"type": "array", "items": {"type": kind, "description": value}, "description": description}
    tools = [tool({"properties": {name: schema, "e": {"enum": [value], "default": value}}}, description=description)]
    prompt = ChatTemplate({"default": TEMPLATE}, kimi).render(ASK, tools)
    assert prompt.text.startswith("# Tools")
    assert not set(prompt.ids) & set(kimi.special_ids.values())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "enum", "anyOf", "$ref", "$defs", "required", "default"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(parameters=json_values)
def test_no_json_makes_it_fail(parameters: Any) -> None:
    declared = declarations([tool(parameters)])
    assert declared is None or declared.endswith("\n}\n")
