"""Host memory on the way to and from a device: two pinned buffers, one being filled while the other is copied.

A copy out of pinned memory runs beside the processor, so a buffer is used again only when the event behind its last
copy has passed. Without a GPU there is nothing to pin and nothing to wait for, and the same code copies the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

BUFFER_BYTES = 4 << 20

Fill = Callable[[Tensor, int], None]
"""Writes into a uint8 buffer what lies so many bytes after the beginning."""


def shares_memory(device: torch.device) -> bool:
    """Whether the device's memory is the host's: an APU, where what is held twice is missed twice."""
    return device.type == "cuda" and bool(torch.cuda.get_device_properties(device).is_integrated)


class Pinned:
    """A tensor in host memory that copies to a device may read while the processor goes on."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self._device = device
        self._event: Any = torch.cuda.Event() if device.type == "cuda" else None

    def wait(self) -> None:
        """Until no copy reads it any more: then it may be written."""
        if self._event is not None:
            self._event.synchronize()

    def send(self, target: Tensor, part: Tensor) -> None:
        """Copy `part`, a view of `values`, to the device; returns before it is there. What is there is not copied."""
        if target.data_ptr() != part.data_ptr():
            target.copy_(part, non_blocking=True)
            self.mark()

    def mirrored(self) -> Tensor:
        """The same values on the device, where they are if that is the processor."""
        return self.values if self._device.type == "cpu" else self.values.to(self._device, copy=True)

    def mark(self) -> None:
        """What was started until now may read or write it."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))


class Staging:
    """Moves bytes of contiguous tensors on `device`. Not thread-safe; `size` bytes are moved at a time."""

    def __init__(self, device: torch.device, size: int = BUFFER_BYTES) -> None:
        self._size = size
        self._buffers = cycle([Pinned((size,), torch.uint8, device) for _ in range(2)])

    def upload(self, target: Tensor, fill: Fill) -> None:
        """Whatever `fill` says, piece after piece, into `target`. The last copies may still be under way."""
        flat = target.view(-1).view(torch.uint8)
        for start in range(0, flat.numel(), self._size):
            buffer, count = next(self._buffers), min(self._size, flat.numel() - start)
            buffer.wait()
            fill(buffer.values[:count], start)
            buffer.send(flat[start : start + count], buffer.values[:count])

    def download(self, source: Tensor) -> bytearray:
        """The bytes of `source`; one piece is copied here while the next one is under way."""
        flat, payload = source.view(-1).view(torch.uint8), bytearray(source.nbytes)
        host = torch.frombuffer(payload, dtype=torch.uint8) if payload else flat
        under_way: list[tuple[Pinned, int, int]] = []
        for start in range(0, flat.numel(), self._size):
            buffer, count = next(self._buffers), min(self._size, flat.numel() - start)
            buffer.wait()
            buffer.values[:count].copy_(flat[start : start + count], non_blocking=True)
            buffer.mark()
            under_way.append((buffer, start, count))
            if len(under_way) == 2:
                _take(host, *under_way.pop(0))
        for each in under_way:
            _take(host, *each)
        return payload


def _take(host: Tensor, buffer: Pinned, start: int, count: int) -> None:
    buffer.wait()
    host[start : start + count] = buffer.values[:count]
