"""A step's pieces as one ragged batch: who stands where, who may advance together, whose logits come out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perilune.nn.batch import Batch, Piece

piece = st.builds(
    lambda mode, start, count, logits: (mode, start, count, logits),
    st.sampled_from(["prefill", "decode"]),
    st.integers(0, 3),
    st.integers(1, 130),
    st.sampled_from(["none", "last", "all"]),
)


def build(drawn: list[tuple[str, int, int, str]]) -> list[Piece]:
    """Tokens name their piece and place; pages are disjoint between pieces."""
    pieces = []
    for number, (mode, start, count, logits) in enumerate(drawn):
        first = start * 64 if mode == "prefill" else start * 64 + 5
        pages = [100 * number + n for n in range((first + count + 63) // 64)]
        tokens = [1000 * number + i for i in range(count)]
        pieces.append(Piece(tokens, first, number, pages, mode, logits))  # type: ignore[arg-type]  # drawn from Literals
    return pieces


@given(drawn=st.lists(piece, min_size=1, max_size=5))
def test_every_token_has_its_place_its_page_and_its_position(drawn: list[tuple[str, int, int, str]]) -> None:
    pieces = build(drawn)
    batch = Batch.build(pieces)
    where = {
        token: (p.start + i, p.pages[(p.start + i) // 64], (p.start + i) % 64)
        for p in pieces
        for i, token in enumerate(p.tokens)
    }
    rows = zip(batch.positions.tolist(), batch.page_ids.tolist(), batch.offsets.tolist(), strict=True)
    assert dict(zip(batch.tokens.tolist(), rows, strict=True)) == where
    for p in batch.prefill:
        assert batch.tokens[p.rows].tolist() == list(pieces[p.slot].tokens)
        assert p.offset + p.count <= batch.decode_start
    decoding = batch.tokens[batch.decode_start :].tolist()
    assert list(batch.lengths) == [where[token][0] + 1 for token in decoding]
    assert [table.tolist() for table in batch.tables] == [pieces[token // 1000].pages for token in decoding]


@given(drawn=st.lists(piece, min_size=1, max_size=5))
def test_waves_hold_each_decode_row_once_in_order_and_no_slot_twice(drawn: list[tuple[str, int, int, str]]) -> None:
    pieces = build(drawn)
    batch = Batch.build(pieces)
    seen: dict[int, list[int]] = {}
    for wave in batch.waves:
        slots = wave.slots.tolist()
        assert len(set(slots)) == len(slots)
        for row, slot in zip(wave.rows.tolist(), slots, strict=True):
            seen.setdefault(slot, []).append(int(batch.tokens[row]))
    assert seen == {n: list(p.tokens) for n, p in enumerate(pieces) if p.mode == "decode"}


@given(drawn=st.lists(piece, min_size=1, max_size=5))
def test_logits_come_in_the_order_of_the_pieces(drawn: list[tuple[str, int, int, str]]) -> None:
    pieces = build(drawn)
    batch = Batch.build(pieces)
    wanted = {"none": slice(0, 0), "last": slice(-1, None), "all": slice(None)}
    expected = [token for p in pieces for token in list(p.tokens)[wanted[p.logits]]]
    assert batch.tokens[batch.logit_rows].tolist() == expected


@given(drawn=st.lists(piece, min_size=1, max_size=5))
def test_on_a_device_the_tables_of_decode_rows_are_one_tensor_made_once_a_step(
    drawn: list[tuple[str, int, int, str]],
) -> None:
    pieces = build(drawn)
    batch, here = Batch.build(pieces, torch.device("meta")), Batch.build(pieces)
    assert isinstance(batch.lengths, torch.Tensor)
    assert batch.lengths.shape == (len(here.lengths),)
    assert batch.decode_start == here.decode_start
    if here.tables:
        assert isinstance(batch.tables, torch.Tensor)
        assert batch.tables.shape == (len(here.tables), max(len(table) for table in here.tables))


def test_a_prefill_piece_must_start_on_a_chunk_boundary() -> None:
    with pytest.raises(AssertionError, match="boundary"):
        Batch.build([Piece([1, 2], 63, 0, [0, 1], "prefill")])
