"""A whole model on torch's meta device, with a recorder for a GPU: every shape is real and nothing is computed.

An op that reads a value on the host, or mixes host and device tensors, fails there: what runs there can be recorded.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perilune.models.families import family_of
from perilune.models.spec import KdaSpec, MlaSpec, ModelSpec
from perilune.nn.decoder import Decoder
from perilune.nn.weights import ModelWeights
from perilune.ops.gpu.arch import Arch
from perilune.ops.gpu.cases import weight
from perilune.ops.gpu.launch import Recorder
from perilune.ops.gpu.table import bound
from perilune.ops.linear.formats import Weight
from perilune.ops.table import REFERENCE

META = torch.device("meta")
_EXPERT = re.compile(r"(layers\.\d+\.moe\.experts)\.(\d+)\.(gate|up|down)")


def decoder(
    spec: ModelSpec, arch: Arch, experts: str = "int4-32", layers: int | None = None
) -> tuple[Decoder, Recorder]:
    """The first `layers` of a model, bf16 but for the experts."""
    spec = dataclasses.replace(spec, layers=spec.layers[:layers])
    loaded: dict[str, Tensor | Weight] = {}
    stacks: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for tensor in family_of(spec).tensors(spec):
        if match := _EXPERT.fullmatch(tensor.name):
            stacks[f"{match[1]}.{match[3]}"].append(tensor.shape)
        elif tensor.quantisable:
            loaded[tensor.name] = weight("bf16", *tensor.shape)
        else:
            dtype = torch.float32 if tensor.keep == "float32" else torch.bfloat16
            loaded[tensor.name] = torch.empty(tensor.held_shape, dtype=dtype, device=META)
    for name, shapes in stacks.items():
        loaded[name] = weight(experts, len(shapes), *shapes[0])
    gpu = Recorder(arch)
    ops = dataclasses.replace(REFERENCE, **bound(gpu))
    return Decoder(spec, ModelWeights.assemble(spec, loaded), ops), gpu


@dataclasses.dataclass(frozen=True)
class Caches:
    """Arenas of a few pages and slots."""

    spec: ModelSpec

    def pages(self, layer: int) -> Tensor:
        mixer = self.spec.layers[layer].mixer
        assert isinstance(mixer, MlaSpec)
        return torch.empty(4, 64, mixer.cache_dim, dtype=torch.bfloat16, device=META)

    def state(self, layer: int) -> Tensor:
        mixer = self._kda(layer)
        return torch.empty(4, mixer.heads, mixer.head_dim, mixer.head_dim, dtype=torch.float32, device=META)

    def conv(self, layer: int) -> Tensor:
        mixer = self._kda(layer)
        shape = (4, 3, mixer.heads, mixer.head_dim, mixer.taps - 1)
        return torch.empty(shape, dtype=torch.bfloat16, device=META)

    def _kda(self, layer: int) -> KdaSpec:
        mixer = self.spec.layers[layer].mixer
        assert isinstance(mixer, KdaSpec)
        return mixer


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once of what ops inside have made."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self._alive = {at: entry for at, entry in self._alive.items() if not entry[0].expired()}
        for leaf in tree_leaves(out):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage._cdata not in given:
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return out
