"""A dense model of two layers with random weights and a vocabulary of bytes, as a GGUF file: what llama.cpp serves."""

from __future__ import annotations

import random
import struct
from pathlib import Path

_U32, _F32, _STRING, _ARRAY, _I32 = 4, 6, 8, 9, 5
_ALIGNMENT = 32
_WIDTH, _LAYERS, _HIDDEN = 64, 2, 128
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # kinds of token


def write_tiny(path: Path, *, vocabulary: bool = True) -> Path:
    """Writes it to `path` and returns that; without a vocabulary, as slices for benchmarks are, if told so."""
    tokens = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL), ("\u2581", _NORMAL)]
    tokens += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
    pairs = [
        ("general.architecture", _STRING, "llama"),
        *((f"llama.{name}", _U32, value) for name, value in _SIZES.items()),
        ("llama.attention.layer_norm_rms_epsilon", _F32, 1e-5),
        ("tokenizer.ggml.model", _STRING, "llama"),
        ("tokenizer.ggml.tokens", _STRING, [text for text, _ in tokens]),
        ("tokenizer.ggml.scores", _F32, [0.0] * len(tokens)),
        ("tokenizer.ggml.token_type", _I32, [kind for _, kind in tokens]),
        ("tokenizer.chat_template", _STRING, "{% for message in messages %}{{ message.content }} {% endfor %}"),
    ]
    if not vocabulary:
        pairs = [pair for pair in pairs if not pair[0].startswith("tokenizer.")]
        pairs += [("tokenizer.ggml.model", _STRING, "no_vocab"), ("llama.vocab_size", _U32, len(tokens))]
    rng, infos, data = random.Random(0), b"", b""
    for name, shape in _tensors(len(tokens)).items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * count if len(shape) == 1 else [rng.uniform(-0.1, 0.1) for _ in range(count)]
        infos += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += struct.pack(f"<{count}f", *values)
        data += bytes(-len(data) % _ALIGNMENT)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(_tensors(len(tokens))), len(pairs))
    head += b"".join(_string(key) + _value(kind, value) for key, kind, value in pairs) + infos
    path.write_bytes(head + bytes(-len(head) % _ALIGNMENT) + data)
    return path


_SIZES = {
    "context_length": 2048, "embedding_length": _WIDTH, "block_count": _LAYERS, "feed_forward_length": _HIDDEN,
    "attention.head_count": 2,
}  # fmt: skip


def _tensors(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name, the innermost dimension first."""
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (_WIDTH,)}
    shapes |= dict.fromkeys(("token_embd.weight", "output.weight"), (_WIDTH, vocabulary))
    for layer in range(_LAYERS):
        for part in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{part}.weight"] = (_WIDTH,)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{part}.weight"] = (_WIDTH, _WIDTH)
        for part, shape in (("gate", (_WIDTH, _HIDDEN)), ("up", (_WIDTH, _HIDDEN)), ("down", (_HIDDEN, _WIDTH))):
            shapes[f"blk.{layer}.ffn_{part}.weight"] = shape
    return shapes


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind: int, value: object) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_scalar(kind, item) for item in value)
    return struct.pack("<I", kind) + _scalar(kind, value)


def _scalar(kind: int, value: object) -> bytes:
    return _string(str(value)) if kind == _STRING else struct.pack({_U32: "<I", _F32: "<f", _I32: "<i"}[kind], value)
