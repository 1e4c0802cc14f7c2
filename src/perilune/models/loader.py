"""Checkpoint -> weights in memory, shard by shard, never the model twice.

Every tensor is allocated once at its final size; each shard is memory-mapped, its tensors copied to their places, and
unmapped before the next one. Peak memory is the weights plus the pages of one shard. A tensor-parallel rank allocates
and reads its share only.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perilune.errors import CheckpointError, UnsupportedError
from perilune.models.checkpoint import Checkpoint
from perilune.models.families.common import DTYPES
from perilune.models.holding import Held
from perilune.models.quantised import Form, Part
from perilune.models.safetensors_file import StoredTensor
from perilune.models.share import WHOLE, Share
from perilune.ops.linear.formats import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    Weight,
    quantise_int8,
    unpack_int4,
)

Progress = Callable[[int, int], None]
_AT_ONCE = 1 << 22  # values rounded at a time
_LARGE = 4 << 20


@dataclass(frozen=True)
class _Copy:
    """One stored tensor on its way to `target`: part `key` of the weight `form`. No target: it is only checked.

    `scale` is where the scales go of one that is rounded to int8 on the way.
    """

    stored: StoredTensor
    key: str
    form: Form
    target: Tensor | None
    scale: Tensor | None = None

    def share(self, values: Tensor) -> Tensor:
        """Of all the part's `values`, as they would be held, those that are taken. A view."""
        part = self.form.parts[self.key]
        if part.taken is None:
            return values
        axis, first, last = part.taken
        return values.narrow(axis, first, last - first)


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    progress: Progress | None = None,
    weight_bits: int = 16,
    share: Share = WHOLE,
) -> dict[str, Tensor | Weight]:
    """Every tensor of the model, or what `share` holds of each, by perilune's name, on the CPU.

    Linear modules come as a Weight (packed ones stay packed), the experts of a layer as one Weight [E, N, K] per
    `layers.{i}.moe.experts.{gate,up,down}`, anything else as a tensor. Dense values are cast to `dtype`, except
    `a_log` [H], `dt_bias` [D] and `router_bias` [E], which are float32, and `router` [E, D], which keeps its stored
    dtype because it is computed in fp32. Convolutions come as [D, taps]. With `weight_bits` 8, dense matrices are
    rounded to int8, but those of experts and `kv_b`. `progress(done, total)` counts stored bytes.
    Raises CheckpointError or UnsupportedError, naming the tensor, as `Checkpoint.check`; ConfigError as `share.cut`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(f"A model cannot run in {name}.", f"Known: {', '.join(DTYPES)}.", "Change dtype.")
    checkpoint.check()
    held = checkpoint.held(name, weight_bits, share)
    memory = {entry.name: _allocate(entry) for entry in held}
    by_file: dict[Path, list[_Copy]] = defaultdict(list)
    for entry in held:
        for copy in _copies(entry, memory[entry.name], checkpoint):
            by_file[copy.stored.file].append(copy)
    done, total = 0, sum(copy.stored.nbytes for copies in by_file.values() for copy in copies)
    for file in sorted(by_file):
        for copied in _read_shard(file, by_file[file]):
            done += copied
            if progress:
                progress(done, total)
    return {entry.name: _finish(entry, memory[entry.name]) for entry in held}


def _allocate(entry: Held) -> dict[str, Tensor]:
    return {key: _empty(part) for key, part in entry.parts.items()}


def _empty(part: Part) -> Tensor:
    """Memory for `part`; large ones in pages of 2 MiB where Linux has them: weights are read from end to end, and
    with 4 KiB pages a processor does not fetch ahead across their ends (a quarter slower, measured: log.md)."""
    dtype = getattr(torch, part.dtype)
    if part.nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(part.shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, part.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(part.shape, dtype=dtype)
    values: Tensor = torch.frombuffer(memory, dtype=torch.uint8)
    return values.view(dtype).view(part.shape)


def _copies(entry: Held, memory: dict[str, Tensor], checkpoint: Checkpoint) -> Iterator[_Copy]:
    if entry.format == "int8":
        [form] = entry.forms
        yield _Copy(checkpoint.stored[form.parts["data"].stored], "data", form, memory["data"], memory["scale"])
        return
    for index, form in enumerate(entry.forms):
        for key, part in form.parts.items():
            target = memory[key][index] if entry.stacked else memory[key]
            yield _Copy(checkpoint.stored[part.stored], key, form, target)
        if form.shape_name:
            yield _Copy(checkpoint.stored[form.shape_name], "shape", form, None)


def _read_shard(file: Path, copies: list[_Copy]) -> Iterator[int]:
    """Do the copies out of one file, front to back; yields the stored bytes of each. Unmaps the file at the end."""
    size = max(copy.stored.offset + copy.stored.nbytes for copy in copies)
    try:
        data = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise CheckpointError(f"{file} cannot be mapped.", str(error), "Check that it has not changed.") from error
    for copy in sorted(copies, key=lambda copy: copy.stored.offset):
        source = _view(data, copy)
        if copy.target is None:
            _check_shape(copy.form, source.tolist())
        elif copy.scale is not None:
            _round(copy.share(source), copy.form.group, copy.target, copy.scale)
        elif copy.key == "zero":
            # Packed along the outputs in the files: [N/8, groups] -> [N, groups].
            copy.target.copy_(copy.share(unpack_int4(source.T, copy.form.spec.shape[0]).T))
        elif copy.form.format == "dense":
            copy.target.copy_(copy.share(source.reshape(copy.form.spec.held_shape)))
        else:
            copy.target.copy_(copy.share(source))
        yield copy.stored.nbytes


def _round(source: Tensor, group: int, target: Tensor, scale: Tensor) -> None:
    """Dense [N, K] -> int8 and its scales, some rows at a time: the head in fp32 would be large."""
    rows = max(1, _AT_ONCE // source.shape[1])
    for first in range(0, source.shape[0], rows):
        part = quantise_int8(source[first : first + rows], group)
        target[first : first + rows] = part.data
        scale[first : first + rows] = part.scale


def _view(data: Tensor, copy: _Copy) -> Tensor:
    """The stored tensor as a view of the mapped file."""
    stored = copy.stored
    raw = data[stored.offset : stored.offset + stored.nbytes]
    # An e8m0 scale is held as the byte it is.
    dtype = torch.uint8 if stored.dtype == "float8_e8m0fnu" else getattr(torch, stored.dtype)
    if stored.offset % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).reshape(stored.shape)


def _check_shape(form: Form, found: list[int]) -> None:
    if tuple(found) != form.spec.shape:
        raise CheckpointError(
            f"{form.shape_name} says {found}; the config asks for {list(form.spec.shape)}.",
            "",
            "Use the config.json of these weights.",
        )


def _finish(entry: Held, parts: dict[str, Tensor]) -> Tensor | Weight:
    form = entry.forms[0]
    if not entry.is_linear:
        return parts["data"]
    if form.format == "int4":
        columns = form.shape[1]
        return Int4Weight(
            parts["packed"], parts["scale"], parts.get("zero"), form.group, columns if columns % 8 else None
        )
    if form.format == "int8":
        return Int8Weight(parts["data"], parts["scale"], form.group)
    if form.format == "mxfp4":
        return Mxfp4Weight(parts["packed"], parts["scale"])
    if form.format == "fp8_block":
        return Fp8BlockWeight(parts["data"], parts["scale_inv"])
    return DenseWeight(parts["data"])
