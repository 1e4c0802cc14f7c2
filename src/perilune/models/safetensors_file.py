"""The header of a safetensors file, read and checked without torch.

Format (safetensors documentation): 8 bytes little-endian length, that many bytes of JSON mapping each name to dtype,
shape and [begin, end) in the bytes that follow. Those ranges cover the rest of the file without a gap.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from perilune.errors import CheckpointError

_MAX_HEADER = 100_000_000

# File names of dtypes -> ours, and bits per element.
_DTYPES = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "I16": ("int16", 16), "U16": ("uint16", 16),
    "I32": ("int32", 32), "U32": ("uint32", 32), "I64": ("int64", 64), "U64": ("uint64", 64),
    "F16": ("float16", 16), "BF16": ("bfloat16", 16), "F32": ("float32", 32), "F64": ("float64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "C64": ("complex64", 64), "F4": ("float4_e2m1fn", 4),
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: `offset` and `nbytes` in bytes from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file. Raises CheckpointError, naming the file, if it is broken or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                _broken(path, f"Its header claims {length} bytes; the file has {size}.")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read.", str(error), "Check the path and its permissions.") from error
    data_start = 8 + length
    tensors = {
        name: _entry(path, name, entry, data_start, size)
        for name, entry in _parse(path, text).items()
        if name != "__metadata__"
    }
    _check_cover(path, tensors, data_start, size)
    return tensors


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name appears twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _broken(path, f"Its header is not valid JSON: {error}.")
    if not isinstance(header, dict):
        _broken(path, "Its header is not a JSON object.")
    return header


def _entry(path: Path, name: str, entry: object, data_start: int, size: int) -> StoredTensor:
    if not isinstance(entry, Mapping):
        _broken(path, f"Its header says nothing about {name}.")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        _broken(path, f"{name} has the unknown dtype {dtype!r}.")
    if not (_are_counts(shape) and _are_counts(span)) or len(span) != 2:
        _broken(path, f"{name} has no valid shape and range.")
    begin, end = span
    ours, bits = _DTYPES[dtype]
    if (end - begin) * 8 != math.prod(shape) * bits:
        _broken(path, f"{name} is {dtype} {shape}, but its range holds {end - begin} bytes.")
    if data_start + end > size:
        _broken(path, f"{name} ends at byte {data_start + end}, but the file has only {size}.")
    return StoredTensor(path, ours, tuple(shape), data_start + begin, end - begin)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _check_cover(path: Path, tensors: Mapping[str, StoredTensor], data_start: int, size: int) -> None:
    position = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != position:
            _broken(path, f"{name} starts at byte {tensor.offset}, not {position}: ranges overlap or leave a gap.")
        position += tensor.nbytes
    if position != size:
        _broken(path, f"Its tensors end at byte {position}, but the file has {size}.")


def _broken(path: Path, why: str) -> NoReturn:
    raise CheckpointError(f"{path} is not a whole safetensors file.", why, "Download or copy the file again.")
