"""Headers read as the safetensors library reads them, and every kind of damage named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from perilune.errors import CheckpointError
from perilune.models.safetensors_file import StoredTensor, read_header

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 4, dtype=torch.int32),
    "d": torch.tensor(7, dtype=torch.uint8),
    "e": torch.ones(2, 2).to(torch.float8_e4m3fn),
}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), span: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


def test_names_shapes_dtypes_and_places_are_those_of_the_library(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in TENSORS.items():
        place = found[name]
        assert place.shape == tuple(tensor.shape)
        assert place.dtype == str(tensor.dtype).removeprefix("torch.")
        bytes_of = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert raw[place.offset : place.offset + place.nbytes] == bytes_of


def test_golden_headers_agree_with_the_library(golden: Path) -> None:
    for shard in golden.glob("model-*.safetensors"):
        found = read_header(shard)
        with safe_open(shard, "pt") as file:
            assert found.keys() == set(file.keys())
            assert all(tuple(file.get_slice(name).get_shape()) == found[name].shape for name in found)


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "x", {"__metadata__": {"format": "pt"}})) == {}


@pytest.mark.parametrize("cut", [1, 8, 40])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(save(TENSORS)[:-cut])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 7, 8, 9])
def test_a_file_shorter_than_any_header_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(b"\x02" + b"\x00" * (size - 1) if size else b"")
    with pytest.raises(CheckpointError, match=r"short\.safetensors"):
        read_header(path)


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(save(TENSORS) + b"\x00")
    with pytest.raises(CheckpointError, match=r"long\.safetensors"):
        read_header(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        read_header(tmp_path / "absent")


DAMAGE: dict[str, tuple[Any, bytes]] = {
    "not json": (b"{nope", b""),
    "not utf-8": (b'{"\xff": 1}', b""),
    "not an object": ([], b""),
    "deep": (b"[" * 100_000, b""),
    "name twice": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "entry not an object": ({"a": 3}, b""),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "unknown dtype": ({"a": entry(dtype="Q4")}, bytes(8)),
    "dtype not text": ({"a": entry(dtype=["F32"])}, bytes(8)),
    "negative size": ({"a": entry(shape=(-2,))}, bytes(8)),
    "size not whole": ({"a": entry(shape=(2.0,))}, bytes(8)),
    "size true": ({"a": entry(shape=(True, 2))}, bytes(8)),
    "shape against range": ({"a": entry(shape=(3,))}, bytes(8)),
    "range backwards": ({"a": entry(shape=(0,), span=(8, 0))}, bytes(8)),
    "range of three": ({"a": entry(span=(0, 8, 8))}, bytes(8)),
    "range past the end": ({"a": entry()}, bytes(7)),
    "overlap": ({"a": entry(), "b": entry(span=(4, 12))}, bytes(12)),
    "gap": ({"a": entry(), "b": entry(span=(12, 20))}, bytes(20)),
    "huge": ({"a": entry(shape=(2**62, 4), span=(0, 2**66))}, bytes(8)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_header_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    header, data = DAMAGE[kind]
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        read_header(write(tmp_path / "bad.safetensors", header, data))


WHOLE = save(TENSORS)
HEADER_END = 8 + struct.unpack("<Q", WHOLE[:8])[0]


@given(st.lists(st.tuples(st.integers(0, HEADER_END - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
def test_flipped_header_bytes_are_refused_or_still_describe_the_file(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE)
    for position, value in flips:
        data[position] = value
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    try:
        found = read_header(path)
    except CheckpointError as error:
        named = error.what
    else:
        named = str(path)
        assert sum(tensor.nbytes for tensor in found.values()) == len(WHOLE) - 8 - struct.unpack("<Q", data[:8])[0]
        assert all(isinstance(tensor, StoredTensor) and tensor.offset <= len(WHOLE) for tensor in found.values())
    assert str(path) in named
