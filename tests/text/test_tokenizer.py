"""Both tokenizer readers against their libraries, and the rule that user text never becomes a control token."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiktoken
import tokenizers
import xgrammar
from hypothesis import given
from hypothesis import strategies as st
from text_strategies import MARKERS, texts
from tokenizers import processors
from vocabularies import write_glm, write_kimi

from perilune.errors import CheckpointError, UnsupportedError
from perilune.text import kimi as kimi_module
from perilune.text.kimi import KimiTokenizer, pieces, read_ranks
from perilune.text.tokenizer import Tokenizer, load_tokenizer


@given(text=texts())
def test_text_survives_a_round_trip_and_yields_no_added_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids, skip_special=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize(("kind", "marker"), [(kind, marker) for kind in MARKERS for marker in MARKERS[kind]])
def test_a_marker_is_one_id_only_when_asked_for(request: pytest.FixtureRequest, kind: str, marker: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    assert tokenizer.encode(f"a{marker}b", allow_special=True).count(tokenizer.special_ids[marker]) == 1
    assert tokenizer.special_ids[marker] not in tokenizer.encode(f"a{marker}b")


@given(text=texts())
def test_kimi_ids_equal_tiktoken_with_specials_allowed(kimi_folder: Path, kimi: Tokenizer, text: str) -> None:
    ranks = read_ranks(kimi_folder / "tiktoken.model")
    specials = dict(kimi.special_ids)
    oracle = tiktoken.Encoding("o", pat_str=kimi_module.PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    assert kimi.encode(text, allow_special=True) == oracle.encode(text, allowed_special="all")


@given(text=texts())
def test_glm_ids_equal_the_tokenizers_library(glm_folder: Path, glm: Tokenizer, text: str) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(glm_folder / "tokenizer.json"))
    ids = oracle.encode(text, add_special_tokens=False).ids
    assert glm.encode(text, allow_special=True) == ids
    assert glm.decode(ids, skip_special=False) == oracle.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("I'm", ["I'm"]),  # one piece: a contraction stays with its word
        ("a中", ["a", "中"]),  # Han never joins Latin, though the vocabulary has "a中"
        ("helloWorld", ["hello", "World"]),  # a capital starts a piece, though the vocabulary has "oW"
        ("12345", ["123", "4", "5"]),  # digits by three, though the vocabulary has "12345"
    ],
)
def test_kimi_pattern_decides_where_merges_stop(kimi: Tokenizer, text: str, parts: list[str]) -> None:
    assert [kimi.token_text(i) for i in kimi.encode(text)] == parts


def test_stop_and_bos_ids_come_from_the_vocabulary(kimi: Tokenizer, glm: Tokenizer) -> None:
    assert kimi.stop_ids == {kimi.special_ids[t] for t in ("[EOS]", "<|im_end|>", "[EOT]")}
    assert glm.stop_ids == {glm.special_ids[t] for t in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    assert (kimi.bos_id, glm.bos_id) == (kimi.special_ids["[BOS]"], None)


def test_decoding_drops_special_tokens_but_keeps_tool_markers(kimi: Tokenizer) -> None:
    ids = kimi.encode("<think>hello<|im_end|>", allow_special=True)
    assert kimi.decode(ids) == "<think>hello"
    assert kimi.decode(ids, skip_special=False) == "<think>hello<|im_end|>"


def test_unnamed_kimi_control_ids_are_reserved_tokens(kimi: Tokenizer) -> None:
    assert set(range(kimi.vocab_size)) == set(range(min(kimi.special_ids.values()))) | set(kimi.special_ids.values())
    reserved = [i for text, i in kimi.special_ids.items() if text.startswith("<|reserved_token_")]
    assert len(reserved) == 2
    assert all(map(kimi.is_special, reserved))


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_ids_outside_the_vocabulary_decode_to_nothing(tokenizer: Tokenizer, token_id: int) -> None:
    assert tokenizer.decode([token_id], skip_special=False) == ""
    assert tokenizer.token_bytes(token_id) == b""


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@given(lengths=st.lists(st.tuples(st.sampled_from("a ."), st.integers(1, 60_000)), max_size=12))
def test_long_text_is_cut_without_loss_and_within_the_limits(lengths: list[tuple[str, int]]) -> None:
    text = "".join(char * count for char, count in lengths)
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert all(cut)
    for piece in cut:
        assert len(piece) <= kimi_module.MAX_PIECE
        assert max(len(run) for run in re.findall(r"\s+|\S+", piece)) <= kimi_module.MAX_RUN


def test_the_cut_is_exactly_at_the_limit() -> None:
    run = kimi_module.MAX_RUN
    assert [len(p) for p in pieces("x" * run)] == [run]
    assert [len(p) for p in pieces("x" * (run + 1))] == [run, 1]
    assert [len(p) for p in pieces("x " * 200_001)] == [400_000, 2]


def test_grammar_cannot_spell_text_with_an_added_token(tokenizer: Tokenizer) -> None:
    info = xgrammar.TokenizerInfo(tokenizer.vocabulary_bytes(), stop_token_ids=sorted(tokenizer.stop_ids))
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_regex(r"[^x]*"))
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    matcher.fill_next_token_bitmask(mask)
    allowed = {i for i in range(info.vocab_size) if mask[0, i // 32] >> (i % 32) & 1}
    assert allowed & set(tokenizer.special_ids.values()) == tokenizer.stop_ids
    assert set(tokenizer.encode("hello")) <= allowed


def test_a_folder_without_tokenizer_files_has_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tiktoken.model", b"!!! 0\n", "tiktoken.model"),
        ("tiktoken.model", b"YQ== zero\n", "tiktoken.model"),
        ("tiktoken.model", b"", "256 of 256"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"5": {"content": "<x>"}}}', "ordinary tokens end at"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "<x>"}}}', "Bad added token"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9999": {"content": ""}}}', "Bad added token"),
    ],
)
def test_a_broken_kimi_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    write_kimi(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_tokenizer(tmp_path)
    assert name in str(caught.value)


def test_a_duplicate_rank_is_an_error(tmp_path: Path) -> None:
    path = write_kimi(tmp_path) / "tiktoken.model"
    path.write_bytes(path.read_bytes() + b"YWFhYWFh 7\n")
    with pytest.raises(CheckpointError, match="not unique"):
        KimiTokenizer.load(tmp_path)


def test_a_missing_kimi_config_is_named(tmp_path: Path) -> None:
    (write_kimi(tmp_path) / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"added_tokens": [3]}'])
def test_a_broken_tokenizer_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_with_broken_merges_is_named(tmp_path: Path) -> None:
    path = write_glm(tmp_path) / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"].append(["no such", "token"])
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_other_kinds_of_tokenizer_json_are_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(UnsupportedError, match="byte-level BPE"):
        load_tokenizer(tmp_path)


def test_what_the_file_puts_before_a_prompt_is_known_and_equals_the_library(tmp_path: Path) -> None:
    folder = write_glm(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    gmask, sop = (library.token_to_id(text) for text in ("[gMASK]", "<sop>"))
    template = processors.TemplateProcessing("[gMASK] <sop> $A", special_tokens=[("[gMASK]", gmask), ("<sop>", sop)])
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    library.save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    assert tokenizer.opening_ids == (gmask, sop)
    assert [*tokenizer.opening_ids, *tokenizer.encode("hello world")] == library.encode("hello world").ids


def test_kimi_puts_nothing_before_a_prompt(kimi: Tokenizer) -> None:
    assert kimi.opening_ids == ()
