"""The built-in model's own tests, each question asked of one engine and of two: the same answer, right or wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from split_world import Engines, Make

from perilune.builtin import model_path
from perilune.engine.request import SamplingParams

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # the makers of these tests are no installed package
from builtin import arithmetic, scores
from builtin.chat import prompt_ids

if TYPE_CHECKING:
    pass

GREEDY = SamplingParams(max_tokens=48, temperature=0)


@pytest.mark.parametrize(
    ("sums", "texts"), [(16, 4), pytest.param(400, 200, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_case_41_split_is_together_question_by_question(make: Make, sums: int, texts: int) -> None:
    """In the checkpoint's own dtype, with the kernels that serve it; without prefix caches, whose cuts show in bf16."""
    settings = {"dtype": "auto", "max_context": 2048, "prefix_cache": False}
    path = model_path()
    engines = Engines(
        p=make(path, "prefill", **settings), d=make(path, "decode", **settings), both=make(path, **settings)
    )
    tokenizer = engines.cores["both"].tokenizer
    assert tokenizer is not None
    turns = [(turn, arithmetic.result) for turn in scores.arithmetic_turns(sums, new_wording=True)]
    for times in (1, 2):
        turns += [(turn, str) for turn in scores.retrieval_turns(tokenizer.encode, times, texts)]
    right = {"together": 0, "split": 0}
    for number, (turn, read) in enumerate(turns):
        prompt = tuple(prompt_ids(turn.question, tokenizer.encode))
        together = engines.alone("both", f"together {number}", prompt, GREEDY)
        split = engines.split(f"split {number}", prompt, GREEDY)
        assert split.events[0].remote is True
        said = [[token.token_id for token in answer.tokens] for answer in (together, split)]
        assert said[0] == said[1], turn.question
        for name, ids in zip(right, said, strict=True):
            right[name] += read(tokenizer.decode(ids)) == read(turn.answer)
    assert right["split"] == right["together"]
    assert right["together"] > len(turns) // 2  # it is a model that answers, so that being equal says something
