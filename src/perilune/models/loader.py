"""Checkpoint -> weights in memory, never the model twice.

Every tensor is allocated once at its final size and read into its place, by as many threads as compute later. Values
that change on the way pass through a buffer of a few MB. Peak memory is the weights: nothing is mapped, since the pages
of a mapped shard stay resident beside what was made of them. A tensor-parallel rank allocates and reads its share only.
The embedding may stay where it is (`embedding.py`).

Of weights on a device nothing stays in host memory: they pass through pinned buffers. Where both are one memory, what
the system has kept of a file is given back tensor by tensor.
"""

from __future__ import annotations

import math
import mmap
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from perilune.errors import CheckpointError, ConfigError, UnsupportedError
from perilune.models.checkpoint import Checkpoint
from perilune.models.embedding import StoredEmbedding
from perilune.models.families.common import DTYPES
from perilune.models.holding import EMBEDDING, Held
from perilune.models.quantised import Form, Part
from perilune.models.safetensors_file import StoredTensor
from perilune.models.shard import Shard, held_as
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
from perilune.ops.staging import Staging, shares_memory
from perilune.units import format_bytes

Progress = Callable[[int, int], None]
_AT_ONCE = 1 << 22  # values rounded at a time
_LARGE = 4 << 20
_CPU = torch.device("cpu")


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

    @property
    def taken(self) -> tuple[int, int, int] | None:
        """(axis, first, last) of what a rank takes, None for all: `Part.taken`."""
        part = self.form.parts.get(self.key)
        return part.taken if part else None

    @property
    def columns(self) -> int:
        """Stored values per row, as the tensor would be held."""
        shape = self.stored.shape if self.form.format in ("int4", "mxfp4", "fp8_block") else self.form.spec.held_shape
        return math.prod(shape[1:])

    @property
    def rows(self) -> range:
        """The stored rows to read: all of them, also where a rank takes some columns of each."""
        if self.taken and self.taken[0] == 0:
            return range(*self.taken[1:])
        return range(math.prod(self.stored.shape) // self.columns)

    @property
    def is_plain(self) -> bool:
        """Whether one run of the file's bytes is what the target holds."""
        as_stored = self.target is not None and self.target.dtype == held_as(self.stored.dtype)
        by_rows = self.key != "zero" and (self.taken is None or self.taken[0] == 0)
        return as_stored and by_rows and self.scale is None


def load_weights(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    progress: Progress | None = None,
    weight_bits: int = 16,
    share: Share = WHOLE,
    device: torch.device = _CPU,
    leave_embedding: bool = False,
) -> dict[str, Tensor | Weight | StoredEmbedding]:
    """Every tensor of the model, or what `share` holds of each, by perilune's name, on `device`.

    Linear modules come as a Weight (packed ones stay packed), the experts of a layer as one Weight [E, N, K] per
    `layers.{i}.moe.experts.{gate,up,down}`, anything else as a tensor. Dense values are cast to `dtype`, except
    `a_log` [H], `dt_bias` [D] and `router_bias` [E], which are float32, and `router` [E, D], which keeps its stored
    dtype because it is computed in fp32. Convolutions come as [D, taps]. With `weight_bits` 8, dense matrices are
    rounded to int8, but those of experts and `kv_b`. With `leave_embedding`, `embed` comes as a StoredEmbedding.
    `progress(done, total)` counts the stored bytes that are read.
    Raises CheckpointError or UnsupportedError, naming the tensor, as `Checkpoint.check`; ConfigError as `share.cut`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(f"A model cannot run in {name}.", f"Known: {', '.join(DTYPES)}.", "Change dtype.")
    checkpoint.check()
    held = checkpoint.held(name, weight_bits, share, leave_embedding)
    memory = _allocate(held, device)
    by_file: dict[Path, list[_Copy]] = defaultdict(list)
    for entry in held:
        for copy in _copies(entry, memory[entry.name], checkpoint):
            by_file[copy.stored.file].append(copy)
    done, total = 0, sum(copy.stored.nbytes for copies in by_file.values() for copy in copies)
    threads = torch.get_num_threads()
    staging = None if device.type == "cpu" else _buffers(device, threads)
    with ThreadPoolExecutor(threads, "load") as pool:
        for file in sorted(by_file):
            for copied in _read_shard(file, by_file[file], pool, staging):
                done += copied
                if progress:
                    progress(done, total)
    loaded: dict[str, Tensor | Weight | StoredEmbedding]
    loaded = {entry.name: _finish(entry, memory[entry.name]) for entry in held}
    if leave_embedding:
        [part] = checkpoint.embedding(name, share).parts.values()
        loaded[EMBEDDING] = StoredEmbedding(checkpoint.stored[part.stored], part)
    return loaded


def _allocate(held: list[Held], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """Raises ConfigError if a device has no room."""
    try:
        return {entry.name: {key: _empty(part, device) for key, part in entry.parts.items()} for entry in held}
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"The weights do not fit: they take {format_bytes(sum(entry.nbytes for entry in held))} on {device}.",
            str(error).split(". ")[0] + ".",
            "Lower max_running, max_context or cache_bytes, or share the model among more devices with tp.",
        ) from error


def _empty(part: Part, device: torch.device) -> Tensor:
    """Memory for `part`; on a CPU, large ones in pages of 2 MiB where Linux has them: weights are read from end to end,
    and with 4 KiB pages a processor does not fetch ahead across their ends (a quarter slower, measured: log.md)."""
    dtype = getattr(torch, part.dtype)
    if device.type != "cpu" or part.nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(part.shape, dtype=dtype, device=device)
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


def _buffers(device: torch.device, threads: int) -> SimpleQueue[Staging]:
    """What a tensor passes through on its way to a device; a set per thread."""
    staging = SimpleQueue[Staging]()
    for _ in range(threads):
        staging.put(Staging(device))
    return staging


def _read_shard(file: Path, copies: list[_Copy], pool: Executor, staging: SimpleQueue[Staging] | None) -> Iterator[int]:
    """Do the copies out of one file; yields the stored bytes of each."""
    with Shard(file) as shard:
        copies = sorted(copies, key=lambda copy: copy.stored.offset)
        # not in the pool: torch converts with threads of its own
        for copy in copies:
            if copy.target is None:
                _check_shape(copy.form, shard.values(copy.stored).tolist())
            elif not copy.is_plain:
                _convert(shard, copy, copy.target)
                if shares_memory(copy.target.device):
                    shard.forget(copy.stored)
            else:
                continue
            yield copy.stored.nbytes
        yield from pool.map(partial(_fill, shard, staging), [copy for copy in copies if copy.is_plain])


def _fill(shard: Shard, staging: SimpleQueue[Staging] | None, copy: _Copy) -> int:
    assert copy.target is not None
    offset = copy.stored.offset + copy.rows.start * copy.columns * copy.target.itemsize
    if staging is None:
        shard.fill(copy.target, offset)
        return copy.stored.nbytes
    buffers = staging.get()
    try:
        buffers.upload(copy.target, lambda part, start: shard.fill(part, offset + start))
    finally:
        staging.put(buffers)
    if shares_memory(copy.target.device):
        shard.forget(copy.stored)
    return copy.stored.nbytes


def _convert(shard: Shard, copy: _Copy, target: Tensor) -> None:
    """Copy what is not held as it is stored, some rows at a time: a head in fp32 would be large."""
    if copy.key == "zero":
        # Packed along the outputs in the files: [N/8, groups] -> [N, groups].
        packed = shard.values(copy.stored).view(copy.stored.shape)
        zero = unpack_int4(packed.T, copy.form.spec.shape[0]).T
        target.copy_(zero.narrow(copy.taken[0], copy.taken[1], target.shape[copy.taken[0]]) if copy.taken else zero)
        return
    rows, columns, target = copy.rows, copy.columns, target.view(len(target), -1)
    step = max(1, _AT_ONCE // columns)
    for first in range(0, len(rows), step):
        count = min(step, len(rows) - first)
        values = shard.values(copy.stored, (rows.start + first) * columns, count * columns).view(count, columns)
        if copy.taken and copy.taken[0] == 1:
            values = values[:, slice(*copy.taken[1:])]
        if copy.scale is None:
            target[first : first + count] = values
        else:
            rounded = quantise_int8(values, copy.form.group)
            target[first : first + count], copy.scale[first : first + count] = rounded.data, rounded.scale


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
