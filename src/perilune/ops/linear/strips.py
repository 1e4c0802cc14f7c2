"""The layout the C++ kernels stream, `csrc/tiles.h`: strips of 16 rows, the 32-bit words of its rows side by side.

[N, words] -> [N/16, words, 16], so that one vector holds one word of each of 16 outputs. A tensor is rearranged where
it lies, a few MB at a time, and keeps its shape and dtype. Scales and zeros are rearranged by element.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 16
# Both sides of a matrix are multiples of this: a run of inputs, and the outputs of one are the inputs of the next.
MULTIPLE = 32
_AT_ONCE = 1 << 22  # bytes that are on the move at a time


def interleave(tensor: Tensor, swap: tuple[int, int] | None) -> None:
    """Lay out [..., N, columns] in strips, in place. N is a multiple of 16.

    `swap` None moves elements. (a, b) moves words of four bytes, the bytes of each a x b block transposed first: of
    eight int8 inputs, (4, 2) puts the even ones first, as the nibbles of a packed word come out.
    """
    rows = _rows(tensor, swap)
    for strips in rows.split(max(1, _AT_ONCE // (STRIP * rows.shape[-1] * rows.element_size()))):
        words = _swap(strips, swap) if swap else strips
        strips.copy_(words.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(strips.shape))


def separate(tensor: Tensor, swap: tuple[int, int] | None) -> Tensor:
    """What `interleave` made it from: a copy."""
    rows = _rows(tensor, swap)
    words = rows.view(rows.shape[0], rows.shape[2], STRIP).transpose(1, 2).contiguous()
    if swap:
        words = _swap(words, swap[::-1])
    return words.view(tensor.dtype).view(tensor.shape)


def _rows(tensor: Tensor, swap: tuple[int, int] | None) -> Tensor:
    """[..., N, columns] -> [strips, 16, columns], in words if `swap` asks for them. A view."""
    strips = tensor.view(-1, STRIP, tensor.shape[-1])
    words: Tensor = strips.view(torch.int32) if swap else strips
    return words


def _swap(words: Tensor, swap: tuple[int, int]) -> Tensor:
    """Words [..., n] int32 with each block of a x b bytes transposed."""
    if swap == (1, 1):
        return words
    blocks = words.contiguous().view(torch.uint8).unflatten(-1, (-1, *swap))
    swapped: Tensor = blocks.transpose(-1, -2).flatten(-3).contiguous().view(torch.int32)
    return swapped
