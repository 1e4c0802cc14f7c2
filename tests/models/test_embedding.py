"""Rows read from a file are those of the table, whatever happens to the file meanwhile."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from perilune.errors import CheckpointError
from perilune.models.embedding import HeldEmbedding, StoredEmbedding
from perilune.models.quantised import Part
from perilune.models.safetensors_file import read_header

ROWS, WIDTH = 37, 24
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def table(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5)).to(dtype)


def stored(
    folder: Path, values: Tensor, dtype: torch.dtype = torch.bfloat16, taken: range | None = None
) -> StoredEmbedding:
    """The table in the middle of a file, opened."""
    file = folder / "model.safetensors"
    save_file({"a": torch.ones(5), "embed": values, "z": torch.ones(3)}, file)
    rows = taken or range(len(values))
    cut = (0, rows.start, rows.stop) if taken else None
    part = Part("embed", str(dtype).removeprefix("torch."), (len(rows), WIDTH), cut)
    return StoredEmbedding(read_header(file)["embed"], part)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedding")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, ROWS - 1), max_size=70), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_rows_of_a_file_are_the_tables(folder: Path, tokens: list[int], kept: torch.dtype, dtype: torch.dtype) -> None:
    wanted = torch.tensor(tokens, dtype=torch.int64)
    held = HeldEmbedding(table(kept).to(dtype))
    found = stored(folder, table(kept), dtype).rows(wanted)
    assert found.dtype == dtype
    assert torch.equal(found, held.rows(wanted))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_written_where_the_caller_wants_them(tmp_path: Path, dtype: torch.dtype) -> None:
    values, wanted = table().to(dtype), torch.tensor([3, 0, 36, 3])
    for embedding in (HeldEmbedding(values), stored(tmp_path, table(), dtype)):
        out = torch.full((4, WIDTH), torch.nan, dtype=dtype)
        assert embedding.rows(wanted, out).data_ptr() == out.data_ptr()
        assert torch.equal(out, values[wanted])
        assert len(embedding) == ROWS


def test_a_share_has_its_own_rows_and_no_others(tmp_path: Path) -> None:
    share = stored(tmp_path, table(), taken=range(10, 31))
    assert len(share) == 21
    assert torch.equal(share.rows(torch.arange(21)), table()[10:31])
    for token in (-1, 21):
        with pytest.raises(IndexError, match="embedding of 21"):
            share.rows(torch.tensor([0, token]))


def test_a_file_that_is_deleted_or_replaced_goes_on_serving(tmp_path: Path) -> None:
    embedding, wanted = stored(tmp_path, table()), torch.tensor([7])
    (tmp_path / "other").write_bytes(bytes(10_000))
    (tmp_path / "other").replace(tmp_path / "model.safetensors")
    assert torch.equal(embedding.rows(wanted), table()[wanted])
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(embedding.rows(wanted), table()[wanted])


def test_a_file_cut_short_is_an_error_that_names_it(tmp_path: Path) -> None:
    embedding = stored(tmp_path, table())
    os.truncate(tmp_path / "model.safetensors", 200)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read\. It ends before byte"):
        embedding.rows(torch.tensor([36]))


def test_a_file_that_is_gone_is_an_error_at_the_start(tmp_path: Path) -> None:
    save_file({"embed": table()}, tmp_path / "model.safetensors")
    entry = read_header(tmp_path / "model.safetensors")["embed"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        StoredEmbedding(entry, Part("embed", "bfloat16", (ROWS, WIDTH)))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files")
def test_the_file_is_closed_with_the_embedding(tmp_path: Path) -> None:
    def is_open() -> bool:
        files = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return any(file.startswith(str(tmp_path)) for file in files)

    embedding = stored(tmp_path, table())
    assert is_open()
    del embedding
    gc.collect()
    assert not is_open()
