from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from perilune.engine.request import Grammar
from perilune.errors import RequestError
from perilune.server.forced import forced_grammar
from perilune.server.grammar import MAX_GRAMMAR_CHARS, GrammarCheck


@pytest_asyncio.fixture
async def grammars() -> AsyncIterator[GrammarCheck]:
    found = GrammarCheck()
    yield found
    await found.close()


async def test_good_grammars_pass_and_bad_ones_say_why(grammars: GrammarCheck) -> None:
    point = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    for good in (
        Grammar("json_object"),
        Grammar("json_schema", '{"type": "object"}'),
        Grammar("regex", "[a-z]+"),
        Grammar("regex", ""),
        Grammar("ebnf", 'root ::= "a" | "b"'),
        forced_grammar([{"name": "a", "parameters": point}, {"name": "b"}]),
    ):
        await grammars.check(good)
    for kind, text, why in (
        ("json_schema", '{"type": "nonsense"}', "nonsense"),
        ("json_schema", "{", "JSON"),
        ("json_schema", '{"$ref": "#/$defs/missing"}', "missing"),
        ("regex", "(", "parenthesis"),
        ("ebnf", "root ::= other", "other"),
        ("ebnf", "", "root"),
        ("ebnf", "root ::= root", "No text fits"),
    ):
        with pytest.raises(RequestError, match=why) as caught:
            await grammars.check(Grammar(kind, text), "response_format")
        assert caught.value.param == "response_format"
        assert ".cc:" not in str(caught.value)


async def test_a_child_that_dies_costs_one_400_and_the_next_check_works(grammars: GrammarCheck) -> None:
    await grammars.check(Grammar("regex", "a"))
    assert grammars._child is not None
    os.kill(grammars._child.pid, signal.SIGKILL)
    with pytest.raises(RequestError, match="breaks the grammar compiler"):
        await grammars.check(Grammar("regex", "b"))
    await grammars.check(Grammar("regex", "b"))


async def test_a_child_that_hangs_is_ended_and_the_next_check_works() -> None:
    grammars = GrammarCheck(check_seconds=2)
    await grammars.check(Grammar("regex", "a"))
    assert grammars._child is not None
    os.kill(grammars._child.pid, signal.SIGSTOP)
    with pytest.raises(RequestError, match="smaller"):
        await grammars.check(Grammar("regex", "b"))
    await grammars.check(Grammar("regex", "c"))
    await grammars.close()


async def test_a_grammar_beyond_the_limit_is_refused_without_a_child() -> None:
    grammars = GrammarCheck()
    with pytest.raises(RequestError, match="too long"):
        await grammars.check(Grammar("regex", "a" * (MAX_GRAMMAR_CHARS + 1)))
    assert grammars._child is None
