"""How a kernel is started: the one door between the wrappers in `ops/*/triton.py` and Triton.

`Gpu` launches. `Recorder` keeps what would have been launched; with tensors on torch's meta device, that is every
kernel a model needs, without memory and without a GPU. Ahead-of-time compilation and warm-up start from such records,
so they cannot forget a kernel or compile another one than runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import triton

from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.tiles import Tile, tile

Grid = tuple[int, ...]


class Listener(Protocol):
    """Somebody who wants to know what is launched."""

    def starts(self, launch: Launch, arch: Arch) -> None:
        """Before: it may have to be compiled now."""

    def launched(self, launch: Launch) -> None:
        """After: it waits in the GPU's queue, or runs."""


@dataclass(frozen=True)
class Gpu:
    """What every `triton.py` computes with, as `Native` is to every `cpu.py`."""

    arch: Arch
    listeners: list[Listener] = field(default_factory=list)

    def tile(self, name: str, form: str = "") -> Tile:
        """The tile of a kernel for a weight format, out of the table."""
        return tile(self.arch.name, name, form)

    def launch(self, kernel: Any, grid: Grid, *args: Any, tile: Tile, form: str = "", **constants: Any) -> None:
        """Run `kernel` over `grid`. `constants` and the tile's blocks are compile-time values; `form` is a label."""
        heard = Launch(kernel, form, args, constants, tile) if self.listeners else None
        if heard:
            for listener in self.listeners:
                listener.starts(heard, self.arch)
        self._run(kernel, grid, args, {**constants, **tile.blocks}, tile)
        if heard:
            for listener in self.listeners:
                listener.launched(heard)

    def _run(self, kernel: Any, grid: Grid, args: tuple[Any, ...], constants: Mapping[str, Any], tile: Tile) -> None:
        if triton.knobs.runtime.interpret:
            kernel[grid](*args, **constants)
        else:
            kernel[grid](*args, **constants, **options(tile))


def options(tile: Tile) -> dict[str, Any]:
    """What the compiler is told beside the kernel's own constants."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for."""

    kernel: Any
    form: str
    args: tuple[Any, ...]
    constants: Mapping[str, Any]
    tile: Tile

    @property
    def name(self) -> str:
        """The kernel's room and name, as "kda.decode"."""
        function = self.kernel.fn
        return f"{function.__module__.split('.')[-2]}.{function.__name__}"


@dataclass(frozen=True)
class Recorder(Gpu):
    """Launches nothing and remembers everything; tensors as meta tensors of their dtype."""

    launches: list[Launch] = field(default_factory=list)

    def launch(self, kernel: Any, grid: Grid, *args: Any, tile: Tile, form: str = "", **constants: Any) -> None:
        assert all(size > 0 for size in grid), f"an empty grid {grid} for {kernel}"
        meta = tuple(torch.empty(0, dtype=a.dtype, device="meta") if isinstance(a, torch.Tensor) else a for a in args)
        self.launches.append(Launch(kernel, form, meta, constants, tile))
