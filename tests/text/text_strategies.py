"""Text that is likely to hit a boundary: markers, pieces of markers, several scripts."""

from __future__ import annotations

from hypothesis import strategies as st

MARKERS = {
    "kimi": [
        "<|im_end|>", "<|im_user|>", "[EOS]", "[BOS]", "<think>", "</think>", "<|tool_calls_section_begin|>",
        "<|tool_call_end|>",
    ],
    "glm": [
        "<|user|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_value>", "[gMASK]", "<sop>",
        "/nothink", "<|observation|>", "<|assistant|>", "<think>",
    ],
}  # fmt: skip
_PIECES = [
    *MARKERS["kimi"], *MARKERS["glm"], "<|reserved_token_300|>", "<|im", "_end|>", "<", "|>", "</", "[", "hello",
    " the", "I'm", "中文", "日a", "😀", "é", "\r\n", "  ", "123", "{", '"',
]  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Up to a dozen pieces, glued without separators so that markers also form across them."""
    piece = st.one_of(st.sampled_from(_PIECES), st.text(max_size=4))
    return st.lists(piece, max_size=12).map("".join)
