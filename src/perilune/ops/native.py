"""Tensors at the door of the C++ kernels: dtype, shape and layout are proved here, then only addresses cross.

A kernel writes wherever an address points, so nothing reaches it unchecked: what shapes can tell is checked in this
file and its callers, what only contents can tell (expert ids, page ids, slots) in `csrc/calls.h`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from perilune.ops.linear.formats import DenseWeight, Int4Weight, Int8Weight, Mxfp4Weight, TiledWeight, Weight
from perilune.ops.tape import Recording, Results, Tape

BF16 = torch.bfloat16
_FORMATS = {"DenseWeight": 0, "Int4Weight": 1, "Mxfp4Weight": 2, "Fp8BlockWeight": 3, "Int8Weight": 4}


class KernelInputError(ValueError):
    """A tensor that a kernel cannot take: a bug of the caller."""


@dataclass(eq=False)
class Native:
    """The extension and one of its instruction-set variants: what every `cpu.py` computes with.

    While `record` runs a step, its calls go onto a tape. One thread calls it at a time.
    """

    module: Any
    kernels: Any
    _handles: WeakKeyDictionary[Weight, Any] = field(default_factory=WeakKeyDictionary, repr=False)
    _recording: Recording | None = None

    @classmethod
    def load(cls, variant: str | None = None) -> Native | str:
        """The fastest variant this processor runs, or `variant`; a string says why there is none.

        The extension is imported here since it is optional, and after torch, so that both share torch's OpenMP
        runtime and its threads.
        """
        try:
            module = importlib.import_module("perilune._kernels")
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError)
            return "no C++ kernels in this build" if missing else f"the C++ kernels cannot be loaded: {error}"
        if module.refusal():
            return str(module.refusal())
        return cls(module, module.Kernels.find(variant or module.names()[0]))

    @property
    def name(self) -> str:
        return str(self.kernels.name)

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def weight(self, weight: Weight) -> Any:
        """The C++ view of `weight`, made once: a step asks for some dozens. It borrows the tensors."""
        if self._recording:
            self._recording.keep(weight)
        if isinstance(weight, TiledWeight) and weight.handle is not None:
            return weight.handle
        handle = self._handles.get(weight)
        if handle is None:
            handle = self._handles[weight] = weight_handle(self.module, weight)
        return handle

    def empty(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        """Memory for a kernel's result."""
        return self._recording.results.empty(shape, dtype) if self._recording else torch.empty(shape, dtype=dtype)

    def dense(self, tensor: Tensor) -> Tensor:
        """`tensor`, copied if its values lie apart. Not while recording: a tape cannot repeat the copy."""
        return tensor if self._recording else tensor.contiguous()

    def address(self, tensor: Tensor, dtype: torch.dtype, *shape: int, name: str) -> int:
        """Where a dense CPU tensor of exactly this dtype and shape begins. Raises KernelInputError."""
        if self._recording:
            self._recording.keep(tensor)
        return address(tensor, dtype, *shape, name=name)

    def rows_address(self, tensor: Tensor, dtype: torch.dtype, *inner: int, name: str) -> tuple[int, int]:
        """(address, elements between rows) of [N, *inner] whose rows are dense but may lie apart.

        Raises KernelInputError.
        """
        step = 1
        dense = True
        for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
            dense, step = dense and (size == 1 or stride == step), step * size
        if tensor.dtype != dtype or tensor.shape[1:] != inner or not dense or tensor.is_cuda:
            raise KernelInputError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}. "
                f"The kernel takes {dtype} [N, {', '.join(map(str, inner))}] with dense rows on the CPU.",
            )
        if self._recording:
            self._recording.keep(tensor)
        return tensor.data_ptr(), tensor.stride(0)

    def record(self, step: Callable[[], Tensor], results: Results) -> tuple[Tensor, Tape]:
        """Run `step` as ever, and its calls onto a tape. What it returned is there again after each `Tape.run`.

        What torch computes in `step` is not repeated. Tapes that never run at the same time may share `results`.
        """
        recording = self._recording = Recording(results)
        self.kernels.record()
        try:
            out = step()
        finally:
            calls = self.kernels.stop()
            self._recording = None
        return out, Tape(calls, (*recording.kept.values(), out, results))


def address(tensor: Tensor, dtype: torch.dtype, *shape: int, name: str) -> int:
    """As `Native.address`, of what is not used by a call of a step."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous() or tensor.is_cuda:
        raise KernelInputError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}{'' if tensor.is_contiguous() else ', not contiguous'}. "
            f"The kernel takes a dense {dtype} {list(shape)} on the CPU.",
        )
    return tensor.data_ptr()


def refuses_weight(weight: Weight) -> str | None:
    """None if the kernels can read the weight, else the reason."""
    tensors = weight.tensors.values()
    if any(t.is_cuda or not t.is_contiguous() for t in tensors):
        return "a weight is not dense in CPU memory"
    if isinstance(weight, TiledWeight):
        weight = weight.plain
    if isinstance(weight, DenseWeight):
        return None if weight.data.dtype == BF16 else f"dense weights are {weight.data.dtype}"
    if isinstance(weight, Int4Weight | Int8Weight):
        if weight.group % 32:
            return f"groups of {weight.group}"
        if weight.scale.dtype != BF16:
            return f"the scales of groups are {weight.scale.dtype}"
    return None


def weight_handle(module: Any, weight: Weight) -> Any:
    """The C++ view of a matrix [N, K] or a stack [E, N, K]. It borrows the tensors: keep them while it is used."""
    reason = refuses_weight(weight)
    if reason:
        raise KernelInputError(f"The C++ kernels cannot read this weight: {reason}.")
    *stack, n, k = weight.shape
    count = stack[0] if stack else 1
    tiled = isinstance(weight, TiledWeight)
    if isinstance(weight, TiledWeight):
        weight = weight.plain
    group, scale, zero = 0, None, None
    if isinstance(weight, DenseWeight):
        data = weight.data
    elif isinstance(weight, Int4Weight):
        data, scale, zero, group = weight.packed, weight.scale, weight.zero, weight.group
        groups = -(-k // group)
        _expect(data, torch.int32, *stack, n, -(-k // 8))
        _expect(scale, BF16, *stack, n, groups)
        if zero is not None:
            _expect(zero, torch.int8, *stack, n, groups)
    elif isinstance(weight, Mxfp4Weight):
        data, scale = weight.packed, weight.scale
        _expect(data, torch.uint8, *stack, n, k // 2)
        _expect(scale, torch.uint8, *stack, n, -(-k // 32))
    elif isinstance(weight, Int8Weight):
        data, scale, group = weight.data, weight.scale, weight.group
        _expect(data, torch.int8, *stack, n, k)
        _expect(scale, BF16, *stack, n, -(-k // group))
    else:
        data, scale = weight.data, weight.scale_inv
        _expect(data, torch.float8_e4m3fn, *stack, n, k)
        _expect(scale, torch.float32, *stack, -(-n // 128), -(-k // 128))
    pointers = [0 if t is None else t.data_ptr() for t in (data, scale, zero)]
    return module.Weight.make(_FORMATS[type(weight).__name__], count, n, k, *pointers, group, tiled)


def _expect(tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    address(tensor, dtype, *shape, name="a part of a weight")
