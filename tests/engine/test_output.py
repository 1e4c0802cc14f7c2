"""Tokens to text deltas: stop strings across tokens, characters across tokens, counts, and no tokenizer at all."""

from __future__ import annotations

import pytest

from perilune.builtin import model_path
from perilune.engine.messages import TokenEvent
from perilune.engine.output import AnswerStream
from perilune.engine.request import FinishReason, SamplingParams, TextDelta, TokenLogprobs
from perilune.text.tokenizer import Tokenizer, load_tokenizer

TEXT = "perilune counts pages é 漢 end"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    loaded = load_tokenizer(model_path())
    assert loaded is not None
    return loaded


def spell(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte, so that every character and every stop string is cut."""
    single = {piece: token for token, piece in enumerate(tokenizer.vocabulary_bytes()) if len(piece) == 1}
    return [single[bytes([byte])] for byte in text.encode()]


def run(
    tokenizer: Tokenizer | None,
    ids: list[int],
    params: SamplingParams,
    finish: FinishReason = "length",
    ends: bool = False,
) -> list[TextDelta]:
    """Deltas up to the one with a finish reason."""
    stream = AnswerStream(tokenizer, params, prompt_tokens=7, index=2)
    deltas = []
    for place, token in enumerate(ids):
        last = place == len(ids) - 1
        event = TokenEvent("x", TokenLogprobs(token, -0.5), finish if last else None, ends_turn=ends and last)
        deltas.append(stream.push(event))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_every_delta_is_whole_characters_and_all_together_are_the_text(tokenizer: Tokenizer) -> None:
    deltas = run(tokenizer, spell(tokenizer, TEXT), SamplingParams())
    assert text_of(deltas) == TEXT
    assert "\ufffd" not in text_of(deltas)


def test_counts_ids_and_index(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    deltas = run(tokenizer, ids, SamplingParams())
    assert [delta.token_ids for delta in deltas] == [(token,) for token in ids]
    assert [delta.completion_tokens for delta in deltas] == list(range(1, len(ids) + 1))
    assert {(delta.prompt_tokens, delta.index, delta.logprobs) for delta in deltas} == {(7, 2, None)}
    assert [delta.finish_reason for delta in deltas] == [None] * (len(ids) - 1) + ["length"]


def test_logprobs_come_only_when_asked_for(tokenizer: Tokenizer) -> None:
    [delta] = run(tokenizer, spell(tokenizer, "a"), SamplingParams(logprobs=0))
    assert delta.logprobs == (TokenLogprobs(delta.token_ids[0], -0.5),)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop", ["counts", "e", "s p", "漢", "é 漢 e"])
def test_a_stop_string_across_tokens(tokenizer: Tokenizer, stop: str, include: bool) -> None:
    params = SamplingParams(stop=("never", stop), include_stop_str_in_output=include)
    deltas = run(tokenizer, spell(tokenizer, TEXT), params)
    end = TEXT.index(stop) + (len(stop) if include else 0)
    assert text_of(deltas) == TEXT[:end]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)


def test_the_start_of_a_stop_string_that_never_comes_is_text(tokenizer: Tokenizer) -> None:
    deltas = run(tokenizer, spell(tokenizer, "one STO"), SamplingParams(stop="STOP"))
    assert text_of(deltas) == "one STO"
    assert deltas[-1].finish_reason == "length"
    assert "S" not in text_of(deltas[:-1])


def test_no_stop_string_is_looked_for_before_min_tokens(tokenizer: Tokenizer) -> None:
    ids = spell(tokenizer, "ab ab ab")
    deltas = run(tokenizer, ids, SamplingParams(stop="ab", min_tokens=2))
    assert text_of(deltas) == "ab "
    assert deltas[-1].completion_tokens == 5


def test_a_stop_token_is_no_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = [*spell(tokenizer, "hi"), spell(tokenizer, "!")[0]]
    assert text_of(run(tokenizer, ids, SamplingParams(), "stop", ends=True)) == "hi"
    assert text_of(run(tokenizer, ids, SamplingParams(include_stop_str_in_output=True), "stop", ends=True)) == "hi!"


def test_special_tokens_are_hidden_unless_asked_for(tokenizer: Tokenizer) -> None:
    name, token = next((n, i) for n, i in tokenizer.special_ids.items() if tokenizer.is_special(i))
    ids = [*spell(tokenizer, "a"), token, *spell(tokenizer, "b")]
    assert text_of(run(tokenizer, ids, SamplingParams())) == "ab"
    assert text_of(run(tokenizer, ids, SamplingParams(skip_special_tokens=False))) == f"a{name}b"


def test_an_answer_cut_inside_a_character_ends_with_a_replacement(tokenizer: Tokenizer) -> None:
    deltas = run(tokenizer, spell(tokenizer, "a漢")[:-1], SamplingParams())
    assert text_of(deltas) == "a\ufffd"


def test_without_a_tokenizer_there_are_ids_and_no_text() -> None:
    deltas = run(None, [5, 6, 7], SamplingParams(stop="x", logprobs=0))
    assert text_of(deltas) == ""
    assert [delta.token_ids for delta in deltas] == [(5,), (6,), (7,)]
    assert deltas[-1].finish_reason == "length"


def test_an_end_without_a_token_still_gives_what_was_held_back(tokenizer: Tokenizer) -> None:
    stream = AnswerStream(tokenizer, SamplingParams(stop="ab"), prompt_tokens=1)
    held = stream.push(TokenEvent("x", TokenLogprobs(spell(tokenizer, "a")[0], 0.0)))
    last = stream.push(TokenEvent("x", None, "abort"))
    assert (held.text, last.text, last.token_ids, last.completion_tokens) == ("", "a", (), 1)
