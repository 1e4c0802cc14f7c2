"""The vocabulary covers the training text and keeps digits apart."""

from __future__ import annotations

import pytest
from builtin import vocabulary
from hypothesis import given
from hypothesis import strategies as st

from perilune.builtin import model_path
from perilune.text.kimi import read_ranks

PATH = model_path() / "tiktoken.model"
ENCODING = vocabulary.load(PATH)


def test_the_whole_training_text_survives_a_round_trip() -> None:
    for text in vocabulary.corpus():
        assert ENCODING.decode(ENCODING.encode_ordinary(text)) == text


@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert ENCODING.decode(ENCODING.encode_ordinary(text)) == text


def test_no_token_holds_a_digit_beside_anything_else() -> None:
    digits = set(b"0123456789")
    assert [t for t in read_ranks(PATH) if len(t) > 1 and digits & set(t)] == []


@given(st.integers(0, 10**12))
def test_a_number_is_one_token_per_digit(number: int) -> None:
    assert len(ENCODING.encode_ordinary(str(number))) == len(str(number))


@pytest.mark.parametrize("text", ["<|im_end|>", "[BOS]", "<|im_user|>user<|im_middle|>"])
def test_written_special_tokens_encode_as_plain_text(text: str) -> None:
    ids = ENCODING.encode_ordinary(text)
    assert max(ids) < ENCODING.n_vocab
    assert len(ids) > 1
