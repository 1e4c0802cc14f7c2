"""A whole model of random weights behind the engine's own loop: what a user of the Python API would see.

The checkpoint is hollow: config and headers as the hub has them, and a file of the right length without a byte in it.
What the loader would read is drawn on the device. Decoding at depth starts from pages and states that were filled with
random values; no token of the base is computed. A step reads the same bytes and does the same operations either way,
and scheduler, books of the cache and sampler do their real work; only the text means nothing.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import torch
from machine import physical_cores
from peers.floors import Floors
from peers.perilune_child import Perilune
from peers.slices import GROUP, MODELS, dense, slice_config
from peers.workloads import Workload, base_tokens
from torch import Tensor

from gpus import targets
from gpus.limits import Limits
from gpus.rows import Row, Target
from gpus.weights import randomise
from perilune.cache.geometry import CacheGeometry, pages_for
from perilune.models.checkpoint import SINGLE, Checkpoint
from perilune.models.families import family_of, read_spec
from perilune.models.holding import Held
from perilune.models.share import WHOLE, Share
from perilune.models.spec import KdaSpec
from perilune.nn.batch import Piece
from perilune.ops.linear.formats import DenseWeight, Int4Weight, Weight

SNAPSHOTS = 8
STEPS = 64
_SIZES = {"I32": 4, "BF16": 2}


@dataclass(frozen=True)
class Plan:
    """What runs. `change`: what of the model's config is another, `chunk`: prompt tokens computed at once."""

    workloads: tuple[Workload, ...]
    layers: int
    vocab: int
    chunk: int
    change: Mapping[str, Any]

    def only(self, wanted: Callable[[str], bool]) -> Plan:
        """The same with the workloads whose names are wanted."""
        return replace(self, workloads=tuple(w for w in self.workloads if wanted(w.name)))


REAL = Plan(
    (
        *(Workload("prefill", tokens) for tokens in (2048, 32_768)),
        *(Workload("decode", STEPS, 0, sequences) for sequences in (1, 8, 32)),
        *(Workload("decode", STEPS, depth) for depth in (131_072, 1_047_552)),  # a page's worth below the model's limit
    ),
    27,
    163_840,
    8192,
    {},
)
_HEADS = {"num_heads": 1, "head_dim": 32, "short_conv_kernel_size": 4, "full_attn_layers": [2], "kda_layers": [1]}
TINY = Plan(
    (Workload("prefill", 20), Workload("decode", 1), Workload("decode", 1, 0, 2), Workload("decode", 1, 128)),
    2,
    64,
    64,
    {
        "hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 96,
        "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "num_experts": 4,
        "num_experts_per_token": 2, "moe_intermediate_size": 32, "linear_attn_config": _HEADS,
    },
)  # fmt: skip


def rows(folder: Path, plan: Plan, device: torch.device, limits: Limits, repeats: int) -> Iterator[Row]:
    """One row per workload, as it is done. Raises ConfigError if the model does not fit the device."""
    if not plan.workloads:
        return
    hollow(folder, slice_config(MODELS["kimi"], plan.layers, plan.vocab) | plan.change)
    checkpoint = Checkpoint.open(folder)
    floors = Floors.of(checkpoint, limits, plan.chunk)
    engine = Whole(checkpoint, plan, device)
    alone = None
    for workload in plan.workloads:
        if device.type != "cpu":
            engine.run(workload, -1)
        samples = [workload.value(engine.run(workload, repeat)) for repeat in range(repeats)]
        row = Row(workload.name, workload.unit, samples, floors.limit(workload))
        if workload.kind == "decode" and (alone or workload == Workload("decode", workload.tokens)):
            alone = alone or row
            row = Row(row.name, row.unit, samples, row.limit, target=_target(workload, row, alone, floors))
        yield row


def _target(workload: Workload, row: Row, alone: Row, floors: Floors) -> Target | None:
    """`alone` is one sequence from an empty cache."""
    if row is alone:
        roof = floors.machine.read * 1e9 / floors.weights(1)
        return Target("of the weights' bytes", targets.DECODE_OF_WEIGHTS, row.value / roof)
    depth, flat = targets.DECODE_AT_DEPTH
    together, times = targets.DECODE_TOGETHER
    if workload.depth == depth:
        return Target("x depth 0", flat, row.value / alone.value)
    return Target("x one alone", times, row.value / alone.value) if workload.sequences == together else None


class Whole(Perilune):
    """The engine, on weights that nobody stored and bases that nobody computed."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, device: torch.device) -> None:
        geometry = CacheGeometry.of(checkpoint.spec, "bfloat16")
        context, sequences = max(w.context for w in plan.workloads), max(w.sequences for w in plan.workloads)
        short = max((w.context for w in plan.workloads if not w.depth), default=0)
        pages = pages_for(context) + pages_for(short) + sequences * pages_for(2 * STEPS)
        with patch("perilune.engine.runner.load_weights", drawn):
            super().__init__(
                str(checkpoint.path),
                physical_cores(),
                context,
                sequences,
                plan.chunk,
                False,
                device=device.type,
                kernels="triton" if device.type == "cpu" else "auto",
                snapshot_slots=SNAPSHOTS,
                cache_bytes=pages * geometry.page_bytes + (sequences + SNAPSHOTS) * geometry.slot_bytes,
            )
        self._device = device
        arenas, spec = self._core.runner.arenas, self._core.spec
        arenas.page_arena.tensor.normal_()
        for index, layer in enumerate(spec.layers):
            if isinstance(layer.mixer, KdaSpec):
                arenas.state(index).normal_(0, 0.1)
                arenas.conv(index).normal_()

    def run(self, workload: Workload, repeat: int) -> float:
        """Seconds of one run, with tokens of its own."""
        seed = crc32(f"{workload} {repeat}".encode())
        if workload.kind == "decode":
            return self.decode(workload.tokens, workload.depth, workload.sequences, seed)
        return self.prefill(workload.tokens, workload.depth, seed)

    def _base(self, depth: int) -> list[int]:
        """As its parent's, but what a step would compute is there already."""
        base = base_tokens(depth, self._vocab)
        if depth:
            with patch.object(self._core.runner, "run", self._pretend):
                self._until_first({self._add(base, new=1)})
        return base

    def _pretend(self, pieces: Sequence[Piece]) -> Tensor:
        count = sum(piece.logit_count for piece in pieces)
        return torch.zeros(count, self._core.spec.hidden, dtype=torch.bfloat16, device=self._device)


def hollow(folder: Path, config: dict[str, Any]) -> None:
    """A checkpoint as `slices.write_slice` makes it, in int4, but for its bytes: the file is one hole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    spec = read_spec(config)
    header: dict[str, Any] = {}
    end = 0
    for tensor in family_of(spec).tensors(spec):
        parts = {tensor.stored: ("BF16", tensor.shape)}
        if tensor.quantisable:
            module, (n, k) = tensor.stored.removesuffix(".weight"), tensor.shape
            parts = {
                f"{module}.weight_packed": ("I32", (n, -(-k // 8))),
                f"{module}.weight_scale": ("BF16", (n, -(-k // GROUP))),
                f"{module}.weight_shape": ("I32", (2,)),
            }
        for name, (dtype, shape) in parts.items():
            begin, end = end, end + _SIZES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    with (folder / SINGLE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def drawn(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    progress: object = None,
    weight_bits: int = 16,
    share: Share = WHOLE,
    device: torch.device | None = None,
    leave_embedding: bool = False,  # which cannot be: there is no file
) -> dict[str, Tensor | Weight]:
    """In place of `load_weights`: the same tensors with random values, made on `device`."""
    held = checkpoint.held(str(dtype).removeprefix("torch."), weight_bits, share)
    return {entry.name: _draw(entry, checkpoint, device or torch.device("cpu")) for entry in held}


def _draw(entry: Held, checkpoint: Checkpoint, device: torch.device) -> Tensor | Weight:
    parts = {
        key: torch.empty(part.shape, dtype=getattr(torch, part.dtype), device=device)
        for key, part in entry.parts.items()
    }
    [form, *_] = entry.forms
    if entry.is_linear:
        int4 = form.format == "int4"
        weight = Int4Weight(parts["packed"], parts["scale"], None, form.group) if int4 else DenseWeight(parts["data"])
        randomise(weight)
        return weight
    if entry.name == "embed":
        return parts["data"].normal_()
    random = np.random.Generator(np.random.SFC64([0, crc32(entry.name.encode())]))
    values = dense(form.spec, checkpoint.spec, random)
    return parts["data"].copy_(values.view(parts["data"].shape))
