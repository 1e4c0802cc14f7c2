"""The makers of training text: same seed, same text; right answers; nothing held out is ever trained on."""

from __future__ import annotations

from random import Random

import pytest
from builtin import arithmetic, questions, retrieval, scores, vocabulary
from builtin.batches import TOKENS, WARM_STEPS, Batches
from builtin.chat import conversation
from builtin.shape import SPECIALS, TRAINED_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.builtin import model_path

ENCODING = vocabulary.load(model_path() / "tiktoken.model")
ENCODE = ENCODING.encode_ordinary
TOPICS = questions.topics()


@pytest.mark.parametrize("step", [0, 1, WARM_STEPS, WARM_STEPS + 1, WARM_STEPS + 2])
def test_a_batch_depends_on_seed_and_step_only(step: int) -> None:
    ids, wanted = Batches(7, ENCODE)(step)
    again, wanted_again = Batches(7, ENCODE)(step)
    other, _ = Batches(8, ENCODE)(step)
    assert ids.equal(again)
    assert wanted.equal(wanted_again)
    assert not ids.equal(other)
    assert wanted.numel() == TOKENS


def test_the_vocabulary_is_made_from_the_same_text_each_time() -> None:
    assert vocabulary.corpus() == vocabulary.corpus()


def test_each_topic_is_asked_in_several_ways() -> None:
    assert len(TOPICS) >= 100
    for topic in TOPICS:
        assert len(topic.asked) >= 8, topic.name
        assert len(topic.held_out) >= 1, topic.name


def test_no_two_topics_share_an_answer() -> None:
    assert len({topic.answer for topic in TOPICS}) == len(TOPICS)


def test_held_out_phrasings_are_never_asked() -> None:
    asked = {text.lower() for topic in TOPICS for text in topic.asked}
    assert asked.isdisjoint(text.lower() for topic in TOPICS for text in topic.held_out)


@given(st.integers())
def test_trained_problems_never_use_held_out_numbers_or_wordings(seed: int) -> None:
    rng = Random(seed)
    held = {arithmetic.sample(rng, new_wording=flag).question for flag in (False, True) for _ in range(20)}
    assert held.isdisjoint(arithmetic.turn(rng).question for _ in range(40))


@settings(max_examples=30)
@given(st.integers(), st.booleans())
def test_every_equation_of_an_answer_is_true_and_small(seed: int, test: bool) -> None:
    rng = Random(seed)
    turn = arithmetic.sample(rng, new_wording=test) if test else arithmetic.turn(rng)
    *lines, last = turn.answer.split("\n")
    for line in lines:
        left, right = line.split("=")
        assert eval(left) == int(right)
        assert 0 <= int(right) <= 100
    assert last == f"#### {lines[-1].split('=')[1]}"
    assert arithmetic.result(turn.answer) == last.removeprefix("#### ")


@given(st.integers())
def test_names_in_retrieval_tests_are_never_trained_on(seed: int) -> None:
    rng = Random(seed)
    tested = {retrieval.place(rng, test=True) for _ in range(50)}
    assert tested.isdisjoint(retrieval.place(rng, test=False) for _ in range(50))


@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_retrieval_test_is_as_long_as_it_says_and_holds_its_answer_once(times: int) -> None:
    for turn in scores.retrieval_turns(ENCODE, times, 5):
        assert abs(len(ENCODE(turn.question)) - times * TRAINED_LENGTH) <= 40
        assert turn.question.count(turn.answer[-5:]) == 1


def test_only_answers_and_their_end_of_turn_count_in_the_loss() -> None:
    turns = [arithmetic.turn(Random(1)), questions.turn(Random(1), TOPICS)]
    row = conversation(turns, ENCODE, "You are perilune.")
    marked = [i for i, wanted in zip(row.ids, row.answers, strict=True) if wanted]
    end = SPECIALS["<|im_end|>"]
    assert marked == [*ENCODE(turns[0].answer), end, *ENCODE(turns[1].answer), end]
