"""Two servers asked the same, greedily: alike, apart at a tie, apart for real; and a needle where it should lie."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from perilune.bench.evals.divergence import Answered, compare, prompts
from perilune.bench.evals.sets import questions
from perilune.bench.spec.sweep import Eval
from perilune.cli.bench import bench


def answering(at: int | None, gap: float) -> servers.Answer:
    """A server that says `a` but at token `at`, where the two best are `gap` apart."""

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        said = ["b" if i == at else "a" for i in range(body["max_tokens"])]
        logprobs = {
            "tokens": said, "token_logprobs": [-0.1] * len(said),
            "top_logprobs": [{"a": -0.1, "b": -0.1 - gap} for _ in said],
        }  # fmt: skip
        servers.whole(handler, 200, servers.json.dumps({"choices": [{"text": "".join(said), "logprobs": logprobs}]}))

    return answer


@pytest.mark.parametrize(
    ("at", "gap", "status", "says"),
    [(None, 1.0, 0, "4 tokens alike"), (2, 0.01, 0, "differs at token 2"), (2, 3.0, 1, "3 apart")],
)
def test_a_difference_counts_unless_it_was_a_near_tie(at: int | None, gap: float, status: int, says: str) -> None:
    with servers.fake(answering(None, gap)) as old, servers.fake(answering(at, gap)) as new:
        done = CliRunner().invoke(bench, ["diverge", old, new, "--prompts", "2", "--length", "5", "--tokens", "4"])
    assert done.exit_code == status
    assert done.stdout.count(says) == 2


@given(st.lists(st.sampled_from("ab"), max_size=8), st.lists(st.sampled_from("ab"), max_size=8))
def test_the_first_difference_is_where_the_texts_part(one: list[str], other: list[str]) -> None:
    found = compare(0, *(Answered(tuple(t), (0.0,) * len(t), (None,) * len(t)) for t in (one, other)))
    if found.index is None:
        assert one == other
    else:
        assert one[: found.index] == other[: found.index]
        assert one[found.index : found.index + 1] != other[found.index : found.index + 1]


def test_prompts_are_the_same_for_both_and_for_ever() -> None:
    assert prompts(2, 5) == prompts(2, 5)
    assert prompts(2, 5) != prompts(2, 5, seed=1)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_needle_lies_where_it_was_said_to(depth: float) -> None:
    for question in questions(Eval(kind="retrieval", length=400, questions=5, depth=depth)):
        text, asked = question.text.split("\n\n")
        needle = f"The code of {asked.removeprefix('What is the code of ').removesuffix('?')} is {question.answer}."
        place = text.index(needle) / (len(text) - len(needle))
        assert place == pytest.approx(depth, abs=0.08)
