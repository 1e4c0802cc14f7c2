"""The memory itself: pages for MLA latents, slots for KDA state. Never aliased, never unified.

On a CPU both arenas are private anonymous mappings: zero to begin with, page-aligned, and handed out by Linux only as
they are touched, so resident memory grows with use up to the planned bytes. On a device they are taken at once, and
what tiers copy passes through pinned host memory.
"""

from __future__ import annotations

import mmap
from functools import partial

import torch
from torch import Tensor

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import ALIGNMENT, PAGE_TOKENS, CacheGeometry, StateBlock
from perilune.cache.tier import Kind, Payload
from perilune.errors import ConfigError, UnsupportedError
from perilune.ops.staging import Staging
from perilune.units import format_bytes


class PageArena:
    """`pages` pages of 64 tokens: one tensor [P, L, 64, R + rope] in the cache dtype, L = MLA layers.

    Raises UnsupportedError if layers differ in R + rope, ConfigError if the memory cannot be had.
    """

    def __init__(self, geometry: CacheGeometry, plan: CachePlan, device: str | torch.device = "cpu") -> None:
        widths = sorted({block.values for block in geometry.latents})
        if len(widths) > 1:
            raise UnsupportedError(
                f"MLA layers cache different widths: {widths}.",
                "A page holds one width for all layers.",
                "This checkpoint needs a page arena per width, which perilune does not have yet.",
            )
        self._row = {block.layer: row for row, block in enumerate(geometry.latents)}
        buffer = _zeros(plan.pages * geometry.page_bytes, torch.device(device), f"{plan.pages} pages")
        self.tensor: Tensor = buffer.view(getattr(torch, geometry.dtype)).view(
            plan.pages, len(self._row), PAGE_TOKENS, widths[0] if widths else 0
        )

    def latents(self, layer: int) -> Tensor:
        """A view [P, 64, R + rope] of the model's layer `layer` (0-based; AssertionError if it is not MLA)."""
        if layer not in self._row:
            raise AssertionError(f"layer {layer} has no latents; MLA layers are {sorted(self._row)}")
        return self.tensor[:, self._row[layer]]

    @property
    def allocated_bytes(self) -> int:
        return self.tensor.untyped_storage().nbytes()


class SlotArena:
    """A row per running sequence and per snapshot: one uint8 tensor [S, slot_bytes], zero to begin with, rows on
    64-byte boundaries.

    `state` and `conv` are views of it, so a slot moves as one row of bytes. Raises ConfigError if the memory cannot
    be had.
    """

    def __init__(self, geometry: CacheGeometry, plan: CachePlan, device: str | torch.device = "cpu") -> None:
        self._blocks = {block.layer: block for block in geometry.states}
        self._dtype: torch.dtype = getattr(torch, geometry.dtype)
        buffer = _zeros(plan.rows * geometry.slot_bytes, torch.device(device), f"{plan.rows} slots")
        self.buffer: Tensor = buffer.view(plan.rows, geometry.slot_bytes)

    def state(self, layer: int) -> Tensor:
        """A view [S, H, K, V] float32 of the model's layer `layer` (0-based; AssertionError if it is not KDA)."""
        block = self._block(layer)
        return self._view(block.state_offset, block.state_bytes, torch.float32, block.state_shape)

    def conv(self, layer: int) -> Tensor:
        """A view [S, 3, H, K, taps - 1] in the cache dtype of the model's layer `layer`; oldest input first."""
        block = self._block(layer)
        return self._view(block.conv_offset, block.conv_bytes, self._dtype, block.conv_shape)

    def clear(self, slot: int) -> None:
        """Zeroes one slot: the memory of a sequence that has seen nothing."""
        self.buffer[slot].zero_()

    def copy(self, source: int, slot: int) -> None:
        """Makes `slot` remember what `source` does; to itself, nothing happens."""
        if source != slot:
            self.buffer[slot].copy_(self.buffer[source])

    @property
    def allocated_bytes(self) -> int:
        return self.buffer.untyped_storage().nbytes()

    def _block(self, layer: int) -> StateBlock:
        if layer not in self._blocks:
            raise AssertionError(f"layer {layer} has no state; KDA layers are {sorted(self._blocks)}")
        return self._blocks[layer]

    def _view(self, offset: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        rows = self.buffer[:, offset : offset + size].view(dtype)
        return rows.view(rows.shape[0], *shape)


class CacheArenas:
    """Both arenas of one rank, as the decoder reads them: views by the model's 0-based layer index."""

    def __init__(self, geometry: CacheGeometry, plan: CachePlan, device: str | torch.device = "cpu") -> None:
        self.page_arena = PageArena(geometry, plan, device)
        self.slot_arena = SlotArena(geometry, plan, device)
        device = torch.device(device)
        self._staging = None if device.type == "cpu" else Staging(device)

    def pages(self, layer: int) -> Tensor:
        """[P, 64, R + rope]."""
        return self.page_arena.latents(layer)

    def state(self, layer: int) -> Tensor:
        """[S, H, K, V] float32."""
        return self.slot_arena.state(layer)

    def conv(self, layer: int) -> Tensor:
        """[S, 3, H, K, taps - 1]."""
        return self.slot_arena.conv(layer)

    def clear(self, slot: int) -> None:
        """Zeroes one slot: what every sequence starts from."""
        self.slot_arena.clear(slot)

    def copy(self, source: int, slot: int) -> None:
        """Copies one row of the slot arena: what a sequence starts from whose beginning was computed before."""
        self.slot_arena.copy(source, slot)

    def size(self, kind: Kind) -> int:
        """Bytes of one page or of one row of the slot arena."""
        tensor = self._rows(kind)
        return tensor[0].numel() * tensor.element_size() if len(tensor) else 0

    def place(self, kind: Kind, index: int) -> Tensor:
        """One page or row, all its layers, as bytes: uint8 [size], a view."""
        return self._rows(kind)[index].view(-1).view(torch.uint8)

    def read(self, kind: Kind, index: int) -> Payload:
        """A copy of one page or row, in host memory."""
        place = self.place(kind, index)
        return bytearray(place.numpy()) if self._staging is None else self._staging.download(place)

    def write(self, kind: Kind, index: int, payload: Payload) -> None:
        """Put back what `read` returned; on a device, it may still be under way, before whatever is started next."""
        place, values = self.place(kind, index), torch.frombuffer(payload, dtype=torch.uint8)
        if self._staging is None:
            place.copy_(values)
        else:
            self._staging.upload(place, partial(_piece_of, values))

    def _rows(self, kind: Kind) -> Tensor:
        return self.page_arena.tensor if kind == "page" else self.slot_arena.buffer

    @property
    def allocated_bytes(self) -> int:
        """Equal to the plan's `total_bytes`."""
        return self.page_arena.allocated_bytes + self.slot_arena.allocated_bytes


def _piece_of(values: Tensor, part: Tensor, start: int) -> None:
    part.copy_(values[start : start + len(part)])


def _zeros(size: int, device: torch.device, what: str) -> Tensor:
    """`size` zero bytes on `device`, 64-byte aligned. Raises ConfigError with what helps if there is no such memory."""
    try:
        if device.type == "cpu" and size:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            buffer = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.uint8)
        else:
            buffer = torch.zeros(size, dtype=torch.uint8, device=device)
    except (OSError, MemoryError, OverflowError, RuntimeError) as error:
        raise ConfigError(
            f"The cache does not fit: {what} take {format_bytes(size)} ({size} bytes) on {device}.",
            f"The system says: {error}.",
            "Lower max_running, max_context or cache_bytes; `perilune plan` shows what fits.",
        ) from error
    assert buffer.data_ptr() % ALIGNMENT == 0
    return buffer
