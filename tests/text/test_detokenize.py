"""Streamed text: the same for any split of the ids, and never a piece of a stop string that then matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_strategies import texts

from perilune.text.detokenize import Detokenizer, StopStrings, TextStream
from perilune.text.tokenizer import Tokenizer


def split(data: st.DataObject, items: list[int]) -> list[list[int]]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(items)), max_size=6)))
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


@given(data=st.data())
def test_any_split_of_any_ids_decodes_alike(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=20))
    stream = Detokenizer(tokenizer)
    assert "".join(stream.push(part) for part in split(data, ids)) + stream.finish() == tokenizer.decode(ids)


def test_a_cut_character_is_held_back(kimi: Tokenizer) -> None:
    stream = Detokenizer(kimi)
    assert [stream.push([byte]) for byte in "😀".encode()] == ["", "", "", "😀"]
    assert stream.push([0xF0]) == ""
    assert stream.finish() == "\ufffd"


STOPS = st.lists(st.sampled_from(["abc", "bc", "ca", "aab", "b", "\n\n", "中文", "😀", "abcabd"]), max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """The specification: the shortest prefix of the text that ends with a stop string, the longest such string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return end - len(stop), end, stop
    return None


@given(pieces=st.lists(st.text(alphabet="abcd\n中文", max_size=5), max_size=8), stops=STOPS, include=st.booleans())
def test_stop_strings_cut_where_the_specification_says(pieces: list[str], stops: list[str], include: bool) -> None:
    matcher, whole, out = StopStrings(stops, include=include), "".join(pieces), ""
    found = first_stop(whole, stops)
    for piece in pieces:
        out += matcher.push(piece)
        assert found is None or len(out) <= (found[1] if include else found[0])
    out += matcher.finish()
    assert out == (whole if found is None else whole[: found[1] if include else found[0]])
    assert matcher.matched == (found[2] if found else None)


def test_only_a_possible_start_is_held_back() -> None:
    matcher = StopStrings(["STOP"])
    assert [matcher.push(p) for p in ("ab S", "TO", "x", "STO", "P and more")] == ["ab ", "", "STOx", "", ""]
    assert matcher.matched == "STOP"
    assert matcher.push("late") == ""
    assert matcher.finish() == ""


@given(data=st.data(), text=texts(), stops=STOPS, include=st.booleans())
def test_a_stream_gives_the_same_text_for_any_split(
    tokenizer: Tokenizer, data: st.DataObject, text: str, stops: list[str], include: bool
) -> None:
    ids = tokenizer.encode(text + "abcabd😀\n\n", allow_special=True)
    whole, parts = TextStream(tokenizer, stops, include), TextStream(tokenizer, stops, include)
    expected = whole.push(ids) + whole.finish()
    assert "".join(parts.push(part) for part in split(data, ids)) + parts.finish() == expected
    assert parts.stopped == whole.stopped


@pytest.mark.parametrize(("skip", "expected"), [(True, "hello"), (False, "hello<|im_end|>")])
def test_special_tokens_show_only_when_wanted(kimi: Tokenizer, skip: bool, expected: str) -> None:
    stream = TextStream(kimi, skip_special=skip)
    assert stream.push(kimi.encode("hello<|im_end|>", allow_special=True)) + stream.finish() == expected


def test_text_before_min_tokens_is_not_searched(kimi: Tokenizer) -> None:
    stream = TextStream(kimi, ["bc"])
    assert stream.push(kimi.encode("abc"), match_stops=False) == "abc"
    assert stream.stopped is None
    assert stream.push(kimi.encode("abc")) == "a"
    assert stream.stopped == "bc"


def test_a_stop_string_that_completes_at_the_end_is_found(kimi: Tokenizer) -> None:
    stream = TextStream(kimi, ["\ufffd"])
    assert stream.push([*b"ok", 0xF0]) + stream.finish() == "ok"
    assert stream.stopped == "\ufffd"
