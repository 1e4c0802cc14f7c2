"""Gives a GGUF file without a tokenizer a vocabulary of made-up words: llama.cpp's server does not start without one.

    python benchmarks/gguf_vocabulary.py SLICE.gguf OUT.gguf

Prompts are token ids, so the words matter to nobody. Tensors are copied as they are.
"""

from __future__ import annotations

import argparse
import mmap
import struct
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the scalar types of GGUF; 8 is a string, 9 an array."""
_U32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT = 32


def add_vocabulary(source: Path, target: Path) -> None:
    """Raises ValueError for a file that is no GGUF of version 3."""
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", data)
        if (magic, version) != (b"GGUF", 3):
            raise ValueError(f"{source} is no GGUF of version 3")
        at, kept, tokens = struct.calcsize("<4sIQQ"), list[bytes](), 0
        for _ in range(pairs):
            start = at
            key, at = _string(data, at)
            kind = struct.unpack_from("<I", data, at)[0]
            at = _skip(data, at + 4, kind)
            if key.endswith(b".vocab_size"):
                tokens = struct.unpack_from("<I", data, start + 8 + len(key) + 4)[0]
            if not key.startswith(b"tokenizer."):
                kept.append(data[start:at])
        infos = at
        for _ in range(tensors):
            _, at = _string(data, at)
            at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 4 + 8
        kept += _vocabulary(tokens)
        header = struct.pack("<4sIQQ", magic, version, tensors, len(kept)) + b"".join(kept) + data[infos:at]
        with target.open("wb") as out:
            out.write(header + bytes(-len(header) % _ALIGNMENT))
            for start in range(at + -at % _ALIGNMENT, len(data), 1 << 26):
                out.write(data[start : start + (1 << 26)])


def _string(data: mmap.mmap, at: int) -> tuple[bytes, int]:
    length = struct.unpack_from("<Q", data, at)[0]
    return data[at + 8 : at + 8 + length], at + 8 + length


def _skip(data: mmap.mmap, at: int, kind: int) -> int:
    if kind == _STRING:
        return _string(data, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SIZES:
        return at + count * _SIZES[inner]
    for _ in range(count):
        at = _skip(data, at, inner)
    return at


def _vocabulary(tokens: int) -> list[bytes]:
    """Byte-level BPE: the 256 bytes, then words nobody writes; the last two begin and end a text."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}
    words = [letters[byte] for byte in range(256)] + [f"word{n}" for n in range(256, tokens)]
    return [
        _pair("tokenizer.ggml.model", _STRING, _text("gpt2")),
        _pair("tokenizer.ggml.pre", _STRING, _text("default")),
        _pair("tokenizer.ggml.tokens", _ARRAY, struct.pack("<IQ", _STRING, tokens) + b"".join(map(_text, words))),
        _pair("tokenizer.ggml.merges", _ARRAY, struct.pack("<IQ", _STRING, 1) + _text("w o")),
        _pair("tokenizer.ggml.bos_token_id", _U32, struct.pack("<I", tokens - 2)),
        _pair("tokenizer.ggml.eos_token_id", _U32, struct.pack("<I", tokens - 1)),
    ]


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    add_vocabulary(options.source, options.target)
